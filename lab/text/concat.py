"""Several text encoders as one: their tokens one after the other, their pooled vectors side by side."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from lab.config import Config
from lab.text.auto import AutoConfig
from lab.text.clip import ClipConfig
from lab.text.encoder import Prepared, TextEncoder, TextStates
from lab.text.t5 import T5Config

AnyPart = Annotated[ClipConfig | T5Config | AutoConfig, Field(discriminator="kind")]


class ConcatConfig(Config):
    """Several encoders side by side.

    Attributes:
        parts: their configurations, two or more, in the order of their tokens.
    """

    kind: Literal["concat"] = "concat"
    parts: tuple[AnyPart, ...] = Field(min_length=2)


class ConcatText(nn.Module):
    """Several encoders side by side; narrower tokens end in zeros.

    Args:
        parts: the encoders, modules all of them.
    """

    def __init__(self, parts: Sequence[TextEncoder]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)  # type: ignore[arg-type]
        self._encoders = tuple(parts)
        self.width = max(part.width for part in parts)
        self.pooled_width = sum(part.pooled_width for part in parts)
        self.num_prepared = sum(part.num_prepared for part in parts)
        self.context = min(part.context for part in parts)

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt as the part of the smallest context counts them."""
        return next(part for part in self._encoders if part.context == self.context).count(prompts)

    def prepare(self, prompts: Sequence[str]) -> Prepared:
        """Give what each part takes, in a row."""
        return tuple(tensor for part in self._encoders for tensor in part.prepare(prompts))

    def forward(self, prepared: Prepared) -> TextStates:
        """Encode with each part."""
        given = iter(prepared)
        states = [part(tuple(islice(given, part.num_prepared))) for part in self._encoders]
        widened = [nn.functional.pad(tokens, (0, self.width - tokens.shape[-1])) for tokens, _, _ in states]
        return TextStates(
            torch.cat(widened, dim=1),  # (b, l, d)
            torch.cat([mask for _, mask, _ in states], dim=1),
            torch.cat([pooled for _, _, pooled in states], dim=-1),  # (b, p)
        )
