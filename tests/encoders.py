"""Pretrained text encoders, tiny and of random weights, in folders as the libraries write them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

CAPTIONS = (
    "a red circle above a blue square",
    "a green ring",
    "two white crosses below a yellow triangle and three small red circles",
    "",
    "an unheard-of Öde 😀 in a house",
)
WIDTH = 16


def bert(folder: Path) -> None:
    """An encoder with a WordPiece tokenizer, and with the pooling head that nothing asks for."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.train_from_iterator(CAPTIONS[:3], trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    config = transformers.BertConfig(vocab_size=120, hidden_size=WIDTH, initializer_range=0.4, **shape)
    transformers.BertModel(config).save_pretrained(folder)


def decoder(folder: Path) -> None:
    """A decoder-only language model; its tokenizer pads on the left, and makes nothing of the empty prompt."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    bytes_.train_from_iterator(CAPTIONS, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token="<|end|>", pad_token="<|end|>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    config = transformers.Qwen2Config(vocab_size=300, hidden_size=WIDTH, initializer_range=0.4, **shape)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


def byt5(folder: Path) -> None:
    """An encoder and decoder over bytes."""
    import transformers

    transformers.ByT5Tokenizer().save_pretrained(folder)
    transformers.T5ForConditionalGeneration(_t5(384)).save_pretrained(folder)


def t5(folder: Path) -> None:
    """The encoder of a T5 with a SentencePiece tokenizer, trained here."""
    import sentencepiece
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS[:3] * 20),
            model_writer=file,
            vocab_size=60,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    # Its constructor ignores the file without a word.
    transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0).save_pretrained(folder)
    transformers.T5EncoderModel(_t5(60)).save_pretrained(folder)


def _t5(words: int) -> object:
    import transformers

    shape = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    return transformers.T5Config(vocab_size=words, d_model=WIDTH, decoder_start_token_id=0, **shape)


def clip(folder: Path) -> None:
    """A CLIP as open_clip writes it, the half for images included."""
    import open_clip
    from safetensors.torch import save_file

    image = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    text = {"context_length": 40, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 3}
    model = open_clip.CLIP(8, image, text, quick_gelu=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    settings = {"embed_dim": 8, "vision_cfg": image, "text_cfg": text, "quick_gelu": True}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, _weights(folder))


def _weights(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


MAKERS: dict[str, Callable[[Path], None]] = {"bert": bert, "decoder": decoder, "byt5": byt5, "t5": t5, "clip": clip}
KINDS = {"bert": "auto", "decoder": "auto", "byt5": "t5", "t5": "t5", "clip": "clip"}


def make(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the encoder of this name into a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        MAKERS[name](folder)
    return folder
