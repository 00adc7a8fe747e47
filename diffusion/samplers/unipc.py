"""UniPC: predict the next state, and correct it with the prediction that is made there anyway."""

from collections.abc import Sequence

from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import Step, decaying_moments, distinct, interpolating_weights, predict, steps_of
from diffusion.schedule import Schedule


def unipc(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, order: int = 2, correct: bool = True
) -> Tensor:
    """Walk from noise to data with UniPC steps: exponential integration of a polynomial x0_hat in half log-SNR.

    A step takes the polynomial through this and the ``order - 1`` predictions before it. The denoiser is then asked at
    the state so reached, and the step is taken again with that prediction included, which costs no further call and
    raises the order of convergence by one: to 3 for ``order = 2``. In the last steps of a walk to sigma = 0 the order
    falls to 1, since they grow without bound in log-SNR. In the first steps there are fewer predictions: with ``order``
    3 or 4 they limit the whole walk to order 3 in the end, but where they are taken at low SNR order 4 is what is seen.

    Args:
        denoise, x, times, schedule: as in ``ddim``.
        order: number of predictions in a polynomial, 1 to 4.
        correct: False leaves the correction out: for ``order = 2`` that is ``dpmpp_2m``, for ``order = 3`` a 3M with
            the right second difference.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], or ``order`` is not 1 to 4.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 to 4, with B(h) = exp(h) - 1 for data prediction ("bh2"),
    which matters only where the paper sets a single weight to 1/2.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order must be 1 to 4, got {order}")
    steps = steps_of(times, schedule)
    nodes: list[tuple[float, Tensor]] = []
    start = x
    for k, step in enumerate(steps):
        x0_hat = predict(denoise, x, step.t)
        if correct and k > 0:
            x = _advance(steps[k - 1], start, nodes[: _order(order, steps, k - 1)], x0_hat)
        nodes = [(step.half_logsnr, x0_hat), *nodes][:order]
        start = x
        x = _advance(step, start, nodes[: _order(order, steps, k)])
    return x


def _order(order: int, steps: Sequence[Step], k: int) -> int:
    """How many predictions step k may use: towards sigma = 0 no more than there are steps left."""
    return min(order, len(steps) - k) if steps[-1].sigma_to == 0 else order


def _advance(step: Step, x: Tensor, nodes: list[tuple[float, Tensor]], arrival: Tensor | None = None) -> Tensor:
    """Take a step with the predictions at its start and before, and at its end where that is known."""
    (here, x0_hat), *past = nodes
    usable = distinct(past, here)
    values = [value for _, value in usable]
    places = [(place - here) / step.length for place, _ in usable]
    moments = decaying_moments(step.length, len(places) + 2)
    if arrival is not None:
        places, values = [*places, 1.0], [*values, arrival]
    # The paper sets the weight of a single difference to B(h) / 2, of the same order as the exact one.
    single = len(places) == 1
    weights = [moments[0] / 2 / places[0]] if single else interpolating_weights(places, moments)
    change = moments[0] * x0_hat
    for weight, value in zip(weights, values, strict=True):
        change = change + weight * (value - x0_hat)
    return step.sigma_to / step.sigma * x + step.alpha_to * change
