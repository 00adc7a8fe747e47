"""How two predictions, a wanted and an unwanted one, make a guided one.

All take and give x0_hat. Where a paper projects or rescales another quantity (v, the velocity of the flow), the
predictions are brought there first: a straight line through two predictions is the same line in every space, but an
angle or a length is not. A scale of 1 is the wanted prediction, 0 the unwanted one; a tensor holds one per image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoiser import beside, per_image
from diffusion.levels import Schedule
from diffusion.parameterization import Parameterization, V, Velocity

Combine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,), wanted, unwanted) -> guided; the last three x0_hat, (b, c, h, w)."""

Scale = float | Tensor
"""One for all images, or (b,)."""


def linear(scale: Scale) -> Combine:
    """Go from the unwanted prediction through the wanted one and on: unwanted + scale (wanted - unwanted).

    Args:
        scale: 1 is the wanted prediction itself, bit for bit.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, with the scale counted from the null (their w + 1).
    """

    def combine(x_t: Tensor, t: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
        if not isinstance(scale, Tensor):
            return wanted if scale == 1 else unwanted + scale * (wanted - unwanted)
        each = _per_image(scale, wanted)
        return torch.where(each == 1, wanted, unwanted + each * (wanted - unwanted))

    return combine


def rescaled(combine: Combine, schedule: Schedule, share: float) -> Combine:
    """Give the guided v the standard deviation of the wanted one, which large scales inflate.

    Args:
        combine: what is corrected.
        schedule: t -> (alpha, sigma).
        share: of the correction, 0 to 1; 0.7 in the paper.

    Source: Lin et al. 2024, arXiv:2305.08891, sec. 3.4.
    """

    def combine_and_rescale(x_t: Tensor, t: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
        space = _Space(V(), schedule, x_t, t)
        v, v_wanted = space.enter(combine(x_t, t, wanted, unwanted)), space.enter(wanted)
        ratio = v_wanted.flatten(1).std(dim=1) / v.flatten(1).std(dim=1)
        return space.leave(v * per_image(1 + share * (ratio - 1)))

    return combine_and_rescale


def adaptive_projected(
    scale: Scale, *, parallel: float = 0.0, radius: float | None = None, momentum: float = 0.0
) -> Combine:
    """Guide across the wanted x0_hat rather than along it: what lies along it only saturates colours.

    With momentum it remembers the difference of the step before, so make a new one for each walk.

    Args:
        scale: 1 is the wanted prediction itself, bit for bit.
        parallel: how much of the part along the wanted prediction is kept; 1 keeps all of it.
        radius: longest allowed difference of the two predictions (its norm over c, h, w); None for any.
        momentum: share of the former differences that is added; negative in the paper.

    Source: Sadat et al. 2024, arXiv:2410.02416, algorithm 1.
    """
    past: list[Tensor] = []

    def combine(x_t: Tensor, t: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
        difference = wanted - unwanted
        if momentum != 0:
            difference = difference + momentum * past.pop() if past else difference
            past.append(difference)
        if radius is not None:
            length = difference.flatten(1).norm(dim=1)
            difference = difference * per_image((radius / length).clamp_max(1))
        along = _projection(difference, wanted)
        return wanted + (_per_image(scale, wanted) - 1) * (difference - along + parallel * along)

    return combine


def zero_star(scale: Scale, schedule: Schedule, *, zero_init: float = 0.0) -> Combine:
    """Guide from the unwanted velocity at its best length, and stand still at first (CFG-Zero*).

    The unwanted velocity is multiplied by what brings it closest to the wanted one. A velocity of 0 leaves the
    direction of the state as it is.

    Args:
        scale: 1 is the wanted prediction, 0 the unwanted one at its best length.
        schedule: t -> (alpha, sigma).
        zero_init: the velocity is 0 at times above 1 - zero_init, where the model is worse than nothing.

    Source: Fan et al. 2025, arXiv:2503.18886, algorithm 1.
    """

    def combine(x_t: Tensor, t: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
        space = _Space(Velocity(), schedule, x_t, t)
        towards, away = space.enter(wanted), space.enter(unwanted)
        base = _projection(towards, away)
        velocity = base + _per_image(scale, towards) * (towards - base)
        return space.leave(torch.where(per_image(*beside(x_t, t > 1 - zero_init)), 0.0, velocity))

    return combine


def plus_plus(strength: float, times: Tensor, schedule: Schedule) -> Combine:
    """CFG++ as classifier-free guidance whose scale follows the steps of DDIM.

    CFG++ mixes the two x0_hat by ``strength`` and adds the noise of the unwanted prediction back. In a DDIM step (eta
    0) from r to r', r = sigma / alpha, that is plain guidance with the scale strength r / (r - r'): other samplers step
    elsewhere and must not be given it.

    Args:
        strength: the paper's lambda, 0 to 1.
        times: (n + 1,), those of the walk.
        schedule: t -> (alpha, sigma).

    Raises:
        ValueError: on use, at a time that begins no step of the walk.

    Source: Chung et al. 2024, arXiv:2406.08070, algorithm 2.
    """
    times = times.double().cpu()
    alphas, sigmas = schedule(times)
    # r / (r - r') without a division by alpha, which may be 0 at the start.
    kept = sigmas[1:] * alphas[:-1] / sigmas[:-1]
    scales = strength * alphas[1:] / (alphas[1:] - kept)

    def combine(x_t: Tensor, t: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
        distance = (times[:-1] - t[0].double().cpu()).abs()
        step = int(distance.argmin())
        if distance[step] > 1e-6:
            raise ValueError(f"CFG++ was made for other times than t = {t[0].item():g}: give it those of the DDIM walk")
        return unwanted + scales[step].item() * (wanted - unwanted)

    return combine


class _Space:
    """Where a parameterization's network output lives: x0_hat = skip x_t + out prediction."""

    def __init__(self, parameterization: Parameterization, schedule: Schedule, x_t: Tensor, t: Tensor) -> None:
        skip, out, _ = beside(x_t, *parameterization(*schedule(t)))
        self.origin, self.out = per_image(skip) * x_t, per_image(out)

    def enter(self, x0_hat: Tensor) -> Tensor:
        return (x0_hat - self.origin) / self.out

    def leave(self, prediction: Tensor) -> Tensor:
        return self.origin + self.out * prediction


def _per_image(scale: Scale, like: Tensor) -> Tensor:
    values = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
    return per_image(values.expand(len(like)))


def _projection(vector: Tensor, onto: Tensor) -> Tensor:
    """The part of ``vector`` along ``onto``, image by image; 0 where ``onto`` is 0."""
    a, b = vector.flatten(1), onto.flatten(1)
    length = (b * b).sum(dim=1)
    share = (a * b).sum(dim=1) / torch.where(length > 0, length, 1.0)
    return per_image(share) * onto
