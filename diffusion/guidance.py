"""Guidance: wrappers that turn a denoiser and conditions into a ``Denoise``.

A scale of 1 is off (the conditional denoiser itself, without a second pass), 0 is the null alone. A wrapper is made of
a pair of predictions and a way to combine them (``diffusion.combination``), so any pair goes with any combination:

    paired(denoiser, cond, null, combine)        conditional and null, in one batch
    contrasted(good, bad, combine)               two models
    within(guided, plain, schedule, interval)    only at some noise levels
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.combination import Combine, Scale, adaptive_projected, linear, plus_plus, rescaled, zero_star
from diffusion.condition import Cond, stack
from diffusion.denoiser import Denoise, Denoiser, beside, per_image
from diffusion.levels import LOGSNR_LIMIT, Schedule, logsnr
from lab.config import Config


def conditional(denoiser: Denoiser, cond: Cond) -> Denoise:
    """Bind a condition to a denoiser, unguided."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        x0_hat: Tensor = denoiser(x_t, t, cond)
        return x0_hat

    return denoise


def paired(denoiser: Denoiser, cond: Cond, null: Cond, combine: Combine) -> Denoise:
    """Combine the conditional and the null prediction, which run as one batch.

    Args:
        denoiser: the model.
        cond: what is wanted, (b, ...).
        null: what to move away from, (b, ...): the empty prompt, or a negative prompt in its place.
        combine: makes one of the two.
    """
    both = stack(cond, null)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        wanted, unwanted = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return combine(x_t, t, wanted, unwanted)

    return denoise


def contrasted(wanted: Denoise, unwanted: Denoise, combine: Combine) -> Denoise:
    """Combine the predictions of two denoisers, one pass each."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return combine(x_t, t, wanted(x_t, t), unwanted(x_t, t))

    return denoise


def within(guided: Denoise, plain: Denoise, schedule: Schedule, interval: tuple[float, float]) -> Denoise:
    """Guide only between two noise levels; elsewhere there is no second pass.

    Args:
        guided, plain: with and without guidance.
        schedule: t -> (alpha, sigma).
        interval: lowest and highest log-SNR with guidance, both included; pure noise counts as -20, pure data as 20.

    Source: Kynkäänniemi et al. 2024, arXiv:2404.07724, sec. 3.
    """
    low, high = interval

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        level = logsnr(*schedule(t)).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)
        inside = (level >= low) & (level <= high)
        if not inside.any():
            return plain(x_t, t)
        if inside.all():
            return guided(x_t, t)
        return torch.where(per_image(*beside(x_t, inside)), guided(x_t, t), plain(x_t, t))

    return denoise


def classifier_free(denoiser: Denoiser, cond: Cond, null: Cond, scale: Scale) -> Denoise:
    """Move from the null prediction through the conditional one and on.

    x0_hat = x0_null + scale (x0_cond - x0_null). Conditional and null run as one batch.

    Args:
        denoiser: the model.
        cond: what is wanted, (b, ...).
        null: what to move away from, (b, ...): the empty prompt, or a negative prompt in its place.
        scale: 1 is off; (b,) for one per prompt.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, with the scale counted from the null (their w + 1).
    """
    return conditional(denoiser, cond) if _is_one(scale) else paired(denoiser, cond, null, linear(scale))


def autoguidance(denoiser: Denoiser, cond: Cond, bad: Denoiser, bad_cond: Cond, scale: Scale) -> Denoise:
    """Move away from what a worse model of the same thing says: a smaller or an earlier one.

    Args:
        denoiser, cond: the model and what is wanted.
        bad: the worse model; it is asked at the levels of ``denoiser``, whatever schedule it was trained on.
        bad_cond: the same prompts, as its own text encoder says them.
        scale: 1 is off; 0 is the bad model.

    Source: Karras et al. 2024, arXiv:2406.02507, sec. 3.
    """
    good = conditional(denoiser, cond)
    if _is_one(scale):
        return good
    worse = Denoiser(bad.network, denoiser.schedule, bad.parameterization)
    return contrasted(good, conditional(worse, bad_cond), linear(scale))


class ClassifierFree(Config):
    """Plain classifier-free guidance; see ``combination.linear``."""

    kind: Literal["classifier_free"] = "classifier_free"

    def combine(self, scale: Scale, times: Tensor, schedule: Schedule) -> Combine | None:
        """Give what combines the two predictions on this walk, or None where there is nothing to do."""
        return None if _is_one(scale) else linear(scale)


class AdaptiveProjected(Config):
    """APG; see ``combination.adaptive_projected``.

    Attributes:
        parallel: how much of the part along the conditional prediction is kept.
        radius: longest allowed difference of the two predictions; null for any. It grows with the size of the image.
        momentum: share of the former differences that is added; negative in the paper.
    """

    kind: Literal["apg"] = "apg"
    parallel: float = Field(0.0, ge=0, le=1)
    radius: float | None = Field(None, gt=0)
    momentum: float = Field(0.0, gt=-1, lt=1)

    def combine(self, scale: Scale, times: Tensor, schedule: Schedule) -> Combine | None:
        """Give what combines the two predictions on this walk, or None where there is nothing to do."""
        if _is_one(scale):
            return None
        return adaptive_projected(scale, parallel=self.parallel, radius=self.radius, momentum=self.momentum)


class ZeroStar(Config):
    """CFG-Zero*; see ``combination.zero_star``.

    Attributes:
        zero_init: share of the time, from t = 1 on, in which the velocity is 0.
    """

    kind: Literal["cfg_zero_star"] = "cfg_zero_star"
    zero_init: float = Field(0.04, ge=0, lt=1)

    def combine(self, scale: Scale, times: Tensor, schedule: Schedule) -> Combine | None:
        """Give what combines the two predictions on this walk, or None where there is nothing to do."""
        return None if _is_one(scale) and self.zero_init == 0 else zero_star(scale, schedule, zero_init=self.zero_init)


class PlusPlus(Config):
    """CFG++, on DDIM with eta 0 alone; see ``combination.plus_plus``.

    Attributes:
        strength: the paper's lambda, from the null to the condition; it takes the place of the scale.
    """

    kind: Literal["cfg_plus_plus"] = "cfg_plus_plus"
    strength: float = Field(0.6, ge=0, le=1)

    def combine(self, scale: Scale, times: Tensor, schedule: Schedule) -> Combine | None:
        """Give what combines the two predictions on this walk."""
        return plus_plus(self.strength, times, schedule)


AnyRule = Annotated[ClassifierFree | AdaptiveProjected | ZeroStar | PlusPlus, Field(discriminator="kind")]


class GuidanceConfig(Config):
    """How the guidance scale is used.

    Attributes:
        rule: what combines the conditional and the null prediction.
        interval: lowest and highest log-SNR with guidance; null for everywhere. Pure noise counts as -20.
        rescale: share by which the spread of the guided v is brought back to that of the conditional one; 0 is off.
    """

    rule: AnyRule = ClassifierFree()
    interval: tuple[float, float] | None = None
    rescale: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> "GuidanceConfig":
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval must be (lowest, highest) log-SNR, got {list(self.interval)}")
        if self.rescale > 0 and isinstance(self.rule, PlusPlus):
            raise ValueError("rescale undoes what cfg_plus_plus promises of a step: set one of the two only")
        return self

    def check_sampler(self, sampler: str, eta: float) -> None:
        """Refuse a sampler that the rule is not made for.

        Raises:
            ValueError: CFG++ anywhere but on DDIM with eta 0.
        """
        if isinstance(self.rule, PlusPlus) and (sampler != "ddim" or eta != 0):
            raise ValueError(
                f"guide.rule cfg_plus_plus is defined by the steps of ddim with eta=0, not of {sampler} with "
                f"eta={eta:g}: set sampler=ddim and eta=0, or guide.rule.kind=classifier_free"
            )


def guide(
    denoiser: Denoiser, cond: Cond, null: Callable[[], Cond], scale: Scale, times: Tensor, config: GuidanceConfig
) -> Denoise:
    """Make the guided denoiser of one walk.

    Args:
        denoiser: the model.
        cond: what is wanted, (b, ...).
        null: gives what to move away from, (b, ...); not asked where guidance is off, which saves encoding it.
        scale: 1 is off; (b,) for one per prompt.
        times: (n + 1,), those of the walk.
        config: how.
    """
    plain, schedule = conditional(denoiser, cond), denoiser.schedule
    combine = config.rule.combine(scale, times, schedule)
    if combine is None:
        return plain
    if config.rescale > 0:
        combine = rescaled(combine, schedule, config.rescale)
    guided = paired(denoiser, cond, null(), combine)
    return guided if config.interval is None else within(guided, plain, schedule, config.interval)


def _is_one(scale: Scale) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1
