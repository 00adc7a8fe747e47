"""What every text encoder gives, and the two steps in which it gives it.

The first step, ``prepare``, is taken on the CPU: text to token ids where the encoder is trained, text to the finished
states where it is frozen. The second is a module's call on the device: ids to states, or states as they are. Whoever
conditions on text takes both steps and need not know which kind of encoder it has.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Prepared = tuple[Tensor, ...]
"""``Tokens`` of a trained encoder, ``TextStates`` of a frozen one, several of them in a row of a concatenation."""


class Tokens(NamedTuple):
    """Texts cut into tokens, padded on the right.

    Attributes:
        ids: (b, l) int64.
        mask: (b, l) bool, True = real token.
    """

    ids: Tensor
    mask: Tensor


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
    """A module from prompts to states, in two steps.

    Attributes:
        width: d of the token states.
        pooled_width: p of the pooled vector.
        context: tokens of a prompt that are heard; longer ones are cut.
        num_prepared: how many tensors ``prepare`` gives.
    """

    width: int
    pooled_width: int
    context: int
    num_prepared: int

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt, however many of them are heard."""
        ...

    def prepare(self, prompts: Sequence[str]) -> Prepared:
        """Give what the call takes, on the CPU, b rows each; the empty prompt is allowed."""
        ...

    def __call__(self, prepared: Prepared) -> TextStates:
        """Encode what was prepared."""
        ...


def placed(prepared: Prepared, device: torch.device) -> Prepared:
    """Move what was prepared to a device."""
    return tuple(tensor.to(device) for tensor in prepared)


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> Tokens:
    """Lay token ids of several texts, each at most ``length`` long, into one (b, length) tensor."""
    tokens = Tokens(
        torch.full((len(rows), length), pad, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.bool)
    )
    for ids, mask, row in zip(*tokens, rows, strict=True):
        ids[: len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[: len(row)] = True
    return tokens
