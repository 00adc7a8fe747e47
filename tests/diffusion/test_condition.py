"""Conditions in one batch."""

import torch

from diffusion.condition import Cond, stack


def test_stack_keeps_the_order() -> None:
    first = Cond(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 3))
    second = Cond(torch.ones(3, 5, 7), torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 3))
    both = stack(first, second)
    assert [tuple(part.shape) for part in both] == [(5, 5, 7), (5, 5), (5, 3)]
    for part in both:
        assert part.flatten(1).double().mean(dim=1).tolist() == [0, 0, 1, 1, 1]
    assert both.mask.dtype == torch.bool
