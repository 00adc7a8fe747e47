"""AdamW, its parameter groups, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from lab.config import Config


class OptimizerConfig(Config):
    """AdamW and its learning rate.

    Attributes:
        rate: peak learning rate.
        warm_up: steps of linear warm-up.
        decay: "wsd" stays at the peak and falls linearly over the last ``decay_share`` of the steps; "cosine" falls from the end of the
            warm-up on; "none" stays.
        decay_share: see above.
        weight_decay: of matrices and kernels; norms, biases and other vectors have none.
        betas: of the two moments.
        clip: largest norm of the gradient; 0 for no limit.
    """

    rate: float = Field(1e-3, gt=0)
    warm_up: int = Field(200, ge=0)
    decay: Literal["wsd", "cosine", "none"] = "wsd"
    decay_share: float = Field(0.25, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = Field(1.0, ge=0)

    def rate_at(self, step: int, steps: int) -> float:
        """Give the learning rate of step 0, 1, .. steps - 1: a function of the step alone."""
        warm = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.decay == "none":
            return self.rate * warm
        if self.decay == "cosine":
            progress = max(0, step - self.warm_up) / max(1, steps - self.warm_up)
            return self.rate * warm * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        left = (steps - step) / max(1.0, self.decay_share * steps)
        return self.rate * min(warm, max(0.0, left))


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over a module's trainable parameters; vectors are not decayed."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=config.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale gradients down to a largest norm (0: no limit) and give the norm they had."""
    return nn.utils.clip_grad_norm_(parameters, limit or math.inf)
