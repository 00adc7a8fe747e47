"""The open_clip door: CLIP's tokenizer and text transformer, small and trained jointly, or pretrained and frozen."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab import pretrained
from lab.errors import Refused
from lab.explanation import nearest
from lab.text import weights
from lab.text.encoder import Prepared, TextStates, Tokens, padded
from lab.text.frozen import PretrainedConfig

PAD, UNKNOWN = 0, 1  # rows of the compact embedding before the first token that the data uses
SHAPE = ("width", "layers", "heads", "mlp_ratio", "causal", "vocabulary")
OURS = {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "ls_init_value",
}  # of open_clip's shape
UNUSED = {"pool_type", "proj_type", "proj_bias", "output_tokens", "pad_id", "eos_id"}  # what follows the states


class ClipConfig(PretrainedConfig):
    """A CLIP text transformer: built from its architecture and trained with the model, or a published one.

    Attributes:
        pretrained: a folder or a repository of the hub with open_clip_config.json and weights, or a name and a tag that
            open_clip knows (``ViT-L-14:laion2b_s32b_b82k``), where a file of weights may stand for the tag; if null,
            one is built.
        layer: of a published one: whether the states are those of its last block or of the one before.
        width, layers, heads: of one that is built.
        mlp_ratio: width of the layer between each block's two linear layers, in multiples of ``width``.
        context: tokens per prompt, start and end included; longer prompts are cut.
        causal: whether a token sees only what stands before it, as in the published CLIP. It makes order an input: the
            second noun has seen the relation, the first has not, and places are bound to nouns several times sooner
            (docs/log.md, 2026-11-25, "where, and of what").
        vocabulary: the BPE tokens that have a row of their own, filled in from the data when a run starts; others share
            the row "unknown", so that nothing walks over the 49,408 rows of which a data set uses a few hundred.
    """

    kind: Literal["clip"] = "clip"
    layer: Literal["last", "penultimate"] = "last"
    width: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    context: int = Field(32, ge=4, le=77)
    causal: bool = True
    vocabulary: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "ClipConfig":
        if self.pretrained is not None:
            self.keep_default("is the shape of one that is built, and pretrained has its own", *SHAPE)
        else:
            self.keep_default("is for a published one: name it with pretrained, or", "layer")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=65536)
def _bpe(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(text))


def vocabulary(captions: Iterable[str]) -> tuple[int, ...]:
    """Collect the BPE tokens that captions use, sorted, start and end tokens included."""
    tokenizer = _tokenizer()
    used = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for caption in captions:
        used.update(_bpe(caption))
    return tuple(sorted(used))


class ClipText(nn.Module):
    """CLIP's text transformer, over the tokens that the data uses or over all.

    Args:
        config: its shape; ``vocabulary`` must be filled in.
        published: a transformer over all tokens; if ``None``, one is built over those of the vocabulary.
    """

    num_prepared = 2

    def __init__(self, config: ClipConfig, published: Any = None) -> None:
        super().__init__()
        self.context = config.context
        self._row: Mapping[int, int] | None = None
        if published is None:
            self._row = {token: row for row, token in enumerate(config.vocabulary, start=UNKNOWN + 1)}
        self.transformer = published or _built(config)
        self.width = self.pooled_width = int(self.transformer.width)

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt, start and end included."""
        return [len(_bpe(prompt)) + 2 for prompt in prompts]

    def prepare(self, prompts: Sequence[str]) -> Tokens:
        """Give (b, context) rows of the embedding, start, text, end, padding; and their mask."""
        tokenizer = _tokenizer()
        rows = [
            (tokenizer.sot_token_id, *_bpe(prompt)[: self.context - 2], tokenizer.eot_token_id) for prompt in prompts
        ]
        if self._row is not None:
            rows = [tuple(self._row.get(token, UNKNOWN) for token in row) for row in rows]
        return padded(rows, self.context, PAD)

    def forward(self, prepared: Prepared) -> TextStates:
        """Encode ids; the pooled vector is the state of the end token."""
        ids, mask = prepared
        # On a CPU the backward pass of the fused attention takes longer than all else here; plain products do not.
        with sdpa_kernel(SDPBackend.MATH) if ids.device.type == "cpu" else nullcontext():
            # open_clip's causal mask is of one size, whatever the texts are cut to.
            _, tokens = self.transformer(nn.functional.pad(ids, (0, self.context - ids.shape[1])))
        tokens, last = tokens[:, : ids.shape[1]], mask.sum(dim=1) - 1
        return TextStates(tokens, mask, tokens[torch.arange(len(ids), device=ids.device), last])


def _built(config: ClipConfig) -> Any:
    """A transformer over the tokens that the data uses, with fresh weights."""
    from open_clip.transformer import TextTransformer

    assert config.vocabulary, "the vocabulary is filled in from the data before the encoder is built"
    transformer: nn.Module = TextTransformer(
        context_length=config.context,
        vocab_size=len(config.vocabulary) + UNKNOWN + 1,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        mlp_ratio=config.mlp_ratio,
        no_causal_mask=not config.causal,
        use_pad_mask=True,
        pad_id=PAD,
        proj_type="none",
        pool_type="none",
        output_tokens=True,
    )
    # open_clip starts positions at half the size of token embeddings; as large as those, word order binds several
    # times sooner.
    for name in ("token_embedding.weight", "positional_embedding"):
        nn.init.normal_(transformer.get_parameter(name), std=config.width**-0.5)
    return transformer


class Published(NamedTuple):
    """Where a published CLIP lies.

    Attributes:
        file: its weights, in safetensors.
        model: its shape, as open_clip writes it.
        quick_gelu: whether its blocks have OpenAI's approximation of the gelu.
        preprocess: how it wants its images, as open_clip writes it; what is not said is as CLIP's.
    """

    file: Path
    model: Mapping[str, Any]
    quick_gelu: bool
    preprocess: Mapping[str, Any]

    @property
    def shape(self) -> Mapping[str, Any]:
        """Of its text transformer."""
        text: Mapping[str, Any] = self.model.get("text_cfg", {})
        return text


def find(name: str, allow_download: bool, setting: str = "text.pretrained", remedy: str = weights.REMEDY) -> Published:
    """Find a published CLIP by folder, repository, or open_clip's name and tag.

    Args:
        name: of the CLIP.
        allow_download: whether the hub may be asked for what is not in its cache.
        setting: that holds the name, for messages.
        remedy: what to do where there is none.

    Raises:
        Refused: it is nowhere on this machine, unknown to open_clip, or not in safetensors.
    """
    architecture, colon, tag = name.partition(":")
    if not colon or Path(name).is_dir():
        folder = pretrained.find(setting, name, weights.TOKENIZER, allow_download, remedy)
        settings = pretrained.settings_of(folder / "open_clip_config.json", remedy)
        model = settings.get("model_cfg", settings)
        preprocess = settings.get("preprocess_cfg", {})
        return Published(_weights_in(folder, remedy), model, bool(model.get("quick_gelu")), preprocess)
    import open_clip

    model = open_clip.get_model_config(architecture)
    if model is None:
        known = nearest(architecture, open_clip.list_models())
        raise Refused(f"{setting}={name}: open_clip knows no model {architecture}{known}")
    published = open_clip.get_pretrained_cfg(architecture, tag)
    quick_gelu = bool(published.get("quick_gelu") or model.get("quick_gelu"))
    if Path(tag).is_file():
        if Path(tag).suffix != ".safetensors":
            raise Refused(f"{setting}={name}: only weights in safetensors are read")
        return Published(Path(tag), model, quick_gelu, published)
    repository = published.get("hf_hub", "").strip("/")
    if not repository:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise Refused(f"{setting}={name}: {tag} is no file and no tag of {architecture} (known: {tags})")
    folder = pretrained.find(setting, repository, weights.TOKENIZER, allow_download, remedy)
    return Published(_weights_in(folder, remedy), model, quick_gelu, published)


def _weights_in(folder: Path, remedy: str) -> Path:
    """The one file of weights; a repository may hold some for other libraries beside open_clip's own."""
    found = pretrained.files(folder, remedy)
    return next((file for file in found if file.name == "open_clip_model.safetensors"), found[0])


def identify(published: Published, records: Path | None) -> weights.Identity:
    """Find out which weights these are, without loading them."""
    settings = json.dumps([published.shape, published.quick_gelu], sort_keys=True)
    return weights.Identity(
        weights=pretrained.digest([published.file], records),
        tokenizer=hashlib.sha256(settings.encode()).hexdigest(),
        width=published.shape.get("width", 512),
    )


def load(config: ClipConfig, published: Published) -> ClipText:
    """Load a published text transformer; only its shape where the default device is "meta".

    Raises:
        Refused: it is not built as CLIP's are, or the weights do not fit.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    shape, penultimate = dict(published.shape), config.layer == "penultimate"
    if strange := sorted(key for key in shape.keys() - OURS - UNUSED if shape[key]):
        raise Refused(f"text.pretrained={config.pretrained}: its text encoder is no plain CLIP ({strange[0]})")
    shape = {"context_length": 77, "layers": 12, **{key: shape[key] for key in OURS & shape.keys()}}
    if config.context > shape["context_length"]:
        raise Refused(f"text.context={config.context}: {config.pretrained} knows {shape['context_length']} positions")
    last = shape["layers"] - 1
    transformer: nn.Module = TextTransformer(
        **(shape | {"context_length": config.context, "layers": last + (not penultimate)}),
        act_layer=QuickGELU if published.quick_gelu else nn.GELU,
        proj_type="none",
        pool_type="none",
        output_tokens=True,
    )
    if torch.get_default_device().type != "meta":
        _fill(transformer, config.context, published.file, (f"transformer.resblocks.{last}.",) if penultimate else ())
    return ClipText(config, transformer)


def _fill(transformer: nn.Module, context: int, path: Path, without: tuple[str, ...]) -> None:
    """Read the text half of a file of weights, its first positions, and not the names that begin as in ``without``."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            prefix = "text." if any(name.startswith("text.") for name in names) else ""
            own = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            ended = ("visual.", "logit_", "text_projection", "attn_mask", *without)
            state = {inner: file.get_tensor(name) for name, inner in own.items() if not inner.startswith(ended)}
        state["positional_embedding"] = state["positional_embedding"][:context]
        transformer.load_state_dict(state)
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise Refused(f"{path} does not hold this text transformer: {' '.join(str(error).split())[:300]}") from error
