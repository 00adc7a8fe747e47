"""AdamW and Muon, which parameter gets which, and the learning rate as a function of the step.

Muon replaces the gradient's momentum of a hidden matrix by the nearest matrix whose singular values are all about 1, so
that every direction of the matrix learns at the same speed. In a short run that is worth a third of the images. It is
not meant for embeddings, vectors, or the first and last layer of a network; those are AdamW's.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.layers import is_edge
from lab.training.budget import Ending
from lab.training.sharding import whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # after 5 steps all singular values lie in about [0.7, 1.2]


class OptimizerConfig(Config):
    """What updates the weights, and how fast.

    Attributes:
        matrices: what updates the hidden matrices and kernels; all else is AdamW's.
        rate: AdamW's peak learning rate.
        matrix_rate: Muon's peak learning rate.
        warm_up: steps of linear warm-up.
        decay: "wsd" stays at the peak and falls linearly over the last ``decay_share`` of the steps; "cosine" falls
            from the end of the warm-up on; "none" stays.
        decay_share: see above; with ``train.budget``, of the time.
        weight_decay: of matrices and kernels; norms, biases and other vectors have none.
        betas: of AdamW's two moments.
        momentum: of Muon.
        clip: largest norm of the gradient; 0 for no limit.
    """

    matrices: Literal["adamw", "muon"] = "adamw"
    rate: float = Field(1e-3, gt=0)
    matrix_rate: float = Field(0.01, gt=0)
    warm_up: int = Field(200, ge=0)
    decay: Literal["wsd", "cosine", "none"] = "wsd"
    decay_share: float = Field(0.25, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)

    def factor_at(self, step: int, ending: Ending | None) -> float:
        """Give the share of the peak rate at step 0, 1, .. : a function of the step and of how the run ends.

        Args:
            step: counted from 0.
            ending: when the rate begins to fall and is 0; ``None`` while that is not decided.
        """
        warm = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.decay == "none" or ending is None:
            return warm
        if self.decay == "cosine":
            progress = max(0, step - self.warm_up) / max(1, ending.last - self.warm_up)
            return warm * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        left = (ending.last - step) / max(1.0, ending.last - ending.decay_from)
        return min(warm, max(0.0, left))

    def ending(self, steps: int) -> Ending:
        """Give the ending of a run of so many steps."""
        return Ending((1 - self.decay_share) * steps, steps)


def build(
    module: nn.Module, config: OptimizerConfig, arithmetic: torch.dtype = torch.float32
) -> tuple[torch.optim.Optimizer, ...]:
    """Give the optimizers that together hold each trainable parameter of a module once.

    Each parameter group keeps its peak rate as "peak".

    Args:
        module: what is trained.
        config: what updates it, and how fast.
        arithmetic: of Muon's matrix products: bfloat16 is enough, and on some CPUs a hundred times slower than float32.
    """
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def is_hidden(name: str, parameter: nn.Parameter) -> bool:
        return (
            parameter.ndim > 1
            and id(parameter) not in embeddings
            and not is_edge(parameter)
            and "embedding" not in name
        )

    hidden = (
        [p for name, p in module.named_parameters() if p.requires_grad and is_hidden(name, p)]
        if config.matrices == "muon"
        else []
    )
    taken = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in trainable if id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay, "peak": config.rate},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "peak": config.rate},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.rate, betas=config.betas, fused=True)
    if not hidden:
        return (adamw,)
    return adamw, Muon(hidden, config.matrix_rate, config.momentum, config.weight_decay, arithmetic)


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def norm_of_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Give the Euclidean norm () of all gradients together."""
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip(parameters: Iterable[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale gradients of a finite norm () down to a largest one; 0 is no limit."""
    if limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices and convolution kernels, which count as (out, in k k) matrices.

    The step is rate max(1, rows / columns)^(1/2) orthogonalise((1 - momentum) gradient + momentum average).

    Args:
        parameters: of two or more dimensions.
        rate: size of a step.
        momentum: of the running average of gradients, used in Nesterov's way.
        weight_decay: decoupled, as in AdamW.
        arithmetic: of the matrix products.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float,
        momentum: float,
        weight_decay: float,
        arithmetic: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": rate, "peak": rate, "momentum": momentum, "weight_decay": weight_decay})
        self.arithmetic = arithmetic

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; matrices of one shape are orthogonalised together."""
        assert closure is None, "the trainer computes gradients before the step"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients, averages = [p.grad for p in parameters], [self._average(p) for p in parameters]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            mixed = torch._foreach_lerp(gradients, averages, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            shapes: dict[tuple[int, int], list[int]] = {}
            for k, parameter in enumerate(parameters):
                shapes.setdefault((len(parameter), parameter.numel() // len(parameter)), []).append(k)
            for (rows, columns), same in shapes.items():
                stacked = torch.stack([mixed[k].reshape(rows, columns) for k in same])
                updates = orthogonalise(stacked, self.arithmetic) * max(1.0, rows / columns) ** 0.5
                shaped = [update.reshape(parameters[k].shape) for k, update in zip(same, updates, strict=True)]
                torch._foreach_add_([parameters[k] for k in same], shaped, alpha=-group["lr"])

    def _average(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum"]
        return average


def orthogonalise(matrices: Tensor, arithmetic: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Bring all singular values of (n, rows, columns) matrices near 1 by Newton-Schulz iterations.

    Source: Jordan et al. 2024; Bernstein and Newhouse 2024, arXiv:2409.20325.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(arithmetic)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
