"""Averages of the weights with a memory that grows with the run.

After step n (from 1) the average is beta avg + (1 - beta) weights with

    beta(n) = (1 - 1/n)^(gamma + 1)

a power-function profile: weights of step k count in proportion to (k / n)^gamma, whatever the length of the run, and
the first step is taken whole. Its *length* is the profile's standard deviation relative to the run, and gamma is the
root of

    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2

Source: Karras et al. 2023, arXiv:2312.02696, sec. 3.1 and algorithm 2.
"""

import copy

import numpy as np
import torch
from torch import nn


def gamma_of(length: float) -> float:
    """Give the exponent of the profile with this relative standard deviation (0 < length < 0.28)."""
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


class Average:
    """One running average of a module's weights, in float32.

    Args:
        module: what is averaged; the average starts as a copy.
        length: relative standard deviation of the profile.
    """

    def __init__(self, module: nn.Module, length: float) -> None:
        self.length = length
        self.gamma = gamma_of(length)
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        assert all(p.dtype in (torch.float32, torch.float64) for p in self.module.parameters()), (
            "averages need fp32 weights"
        )

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step ``step``, counted from 1."""
        beta = (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - beta)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
