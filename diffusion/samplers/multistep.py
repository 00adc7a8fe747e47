"""Linear multistep methods: the noise predictions of the last steps, extrapolated in sigma / alpha."""

from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import Step, distinct, interpolating_weights, predict, steps_of
from diffusion.schedule import Schedule

# Adams and Bashforth's, for equal steps; this prediction first.
EQUAL_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def lms(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, order: int = 4) -> Tensor:
    """Walk from noise to data with linear multistep steps: a polynomial eps_hat, integrated over sigma / alpha exactly.

    The first steps use as many predictions as there are. The very first is of first order, which limits the whole walk
    to order 2 in the end; where it is taken at low SNR its error is so small that order 3 to 4 is what is seen.

    Args:
        denoise, x, times, schedule: as in ``ddim``.
        order: number of predictions in a polynomial, 1 to 4.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], or ``order`` is not 1 to 4.

    Source: k-diffusion, ``sample_lms``; Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I,
    sec. III.5 (Adams methods with variable steps).
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order must be 1 to 4, got {order}")
    past: list[tuple[float, Tensor]] = []
    for step in steps_of(times, schedule):
        x0_hat = predict(denoise, x, step.t)
        eps = step.eps(x, x0_hat)
        usable = distinct(past, step.ratio)
        places = [(place - step.ratio) / (step.on_eps / step.alpha_to) for place, _ in usable]
        weights = interpolating_weights(places, [1 / (j + 1) for j in range(order)])
        x = _extrapolated(step, step.ddim(x, x0_hat), eps, [value for _, value in usable], weights)
        past = [(step.ratio, eps), *past][: order - 1]
    return x


def plms(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Walk from noise to data with PLMS steps: DDIM with four noise predictions, weighted as if steps were equal.

    Steps are not equal in sigma / alpha, so the order of convergence is 2 on any grid. The first step is DDIM's and
    costs one call; the published one corrects it with a second call, which at the very low SNR of a first step makes it
    worse. At alpha = 0 eps_hat is x / sigma and, the weights being those of equal steps, used like any other.

    Args:
        denoise, x, times, schedule: as in ``ddim``.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1].

    Source: Liu et al. 2022, arXiv:2202.09778, eq. 9 and 12.
    """
    past: list[Tensor] = []
    for step in steps_of(times, schedule):
        x0_hat = predict(denoise, x, step.t)
        eps = step.eps(x, x0_hat)
        x = _extrapolated(step, step.ddim(x, x0_hat), eps, past, EQUAL_STEPS[len(past)][1:])
        past = [eps, *past][: len(EQUAL_STEPS) - 1]
    return x


def _extrapolated(
    step: Step, first_order: Tensor, eps: Tensor, past: list[Tensor], weights: tuple[float, ...] | list[float]
) -> Tensor:
    """Correct a step of first order by what eps_hat did before; written so, large x / alpha never cancel."""
    x = first_order
    for weight, before in zip(weights, past, strict=True):
        x = x + step.on_eps * weight * (before - eps)
    return x
