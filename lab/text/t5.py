"""Encoders of the T5 family, pretrained, or built small over bytes and trained jointly."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lab.errors import Refused
from lab.text.auto import TransformerText, library, read
from lab.text.frozen import PretrainedConfig

FAMILY = ("t5", "mt5", "umt5")
SHAPE = ("width", "layers", "heads", "mlp_ratio")


class T5Config(PretrainedConfig):
    """The encoder of a T5: flan-T5, ByT5, mT5 and their like, or one that is built small and trained with the model.

    One that is built reads bytes, as ByT5 does, so every text has its tokens and none is unknown.

    Attributes:
        pretrained: a folder or a repository of the hub, such as ``google/flan-t5-base``; if null, one is built.
        context: tokens per prompt, the end included; longer prompts are cut. Bytes are about five to a word.
        width, layers, heads: of one that is built.
        mlp_ratio: of one that is built: width of the gated layer in each block, in multiples of ``width``.
    """

    kind: Literal["t5"] = "t5"
    context: int = Field(128, ge=2)
    width: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "T5Config":
        if self.pretrained is not None:
            self.keep_default("is the shape of one that is built, and pretrained has its own", *SHAPE)
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


def build(config: T5Config) -> TransformerText:
    """Build a small one over bytes, with fresh weights.

    Source: Xue et al. 2022, arXiv:2105.13626 (bytes); Shazeer 2020, arXiv:2002.05202 (gated layers).

    Raises:
        Refused: transformers is not installed.
    """
    transformers = library()
    tokenizer = transformers.ByT5Tokenizer()
    shape = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=round(config.width * config.mlp_ratio),
        num_layers=config.layers,
        num_heads=config.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    return TransformerText(tokenizer, transformers.T5EncoderModel(shape).get_encoder(), config.context)


def load(config: T5Config, folder: Path) -> TransformerText:
    """Load the encoder of a T5 and its tokenizer from a folder.

    Raises:
        Refused: it is no T5, or its files do not fit together.
    """
    text = read(folder, library().AutoModelForTextEncoding, config.context)
    settings = text.model.config
    if settings.model_type not in FAMILY:
        raise Refused(f"{folder}: {settings.model_type} is none of {', '.join(FAMILY)}: choose text.kind=auto")
    # Its stack alone: around it the embedding has two names.
    return TransformerText(text.tokenizer, text.model.get_encoder(), config.context)
