"""What every text encoder gives."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class TextStates(NamedTuple):
    """Encoded texts.

    Attributes:
        tokens: (b, l, d), one vector per token; l is fixed per model.
        mask: (b, l) bool, True = real token. Tokens outside the mask influence nothing.
        pooled: (b, p), one vector per text.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(Protocol):
    """A module from prompts to states, in two steps: text to numbers on the CPU, numbers to states on the device."""

    width: int
    pooled_width: int

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Give (b, l) int64 token ids; the empty prompt is allowed."""
        ...

    def __call__(self, ids: Tensor) -> TextStates:
        """Encode (b, l) ids."""
        ...
