"""What the loss really weighs: how often a noise level is drawn, times what its error counts.

A loss averages over what is drawn, so a level of log-SNR lambda counts p(lambda) w(lambda): the density of the samples
there times the weight. Schedule, times and weight only matter through this product (and the density alone through how
noisy the gradient is), so two configurations with the same product train for the same thing. On the error of x0 the
product is p w; on the error of the network's own target, which is that of x0 over out^2, it is p w out^2. Times that
learn where to lie (``loss_second_moment``) change density and weight against each other, and are shown as they begin.

How to read the picture that a run saves at its start, where noise is on the left and data on the right:

* Above, each area is 1. Grey is where the samples lie; the line is where the loss lies, if the network errs by the same
  amount on its own target everywhere. Line above grey: levels that count more than they are drawn, so their gradient is
  noisy. Grey above line: work that hardly counts. With the weight ``target`` the two are one.
* Below, the same on the error of x0, on a logarithmic axis, where each maximum is 1 and only slopes mean something:
  dashed the weight alone, solid what it comes to with the samples. The dotted line is SNR, which is what the bound on
  the likelihood weighs: where the solid line rises less, what is seen at a glance counts for more than fine detail.
* What is decided where depends on the data. On the Shapes world at 32 pixels it is number and place below -2, which
  shape it is between -2 and 0, and the outline above; twice the resolution moves all of it down by 2 log(2) = 1.4.

Source: Kingma and Gao 2023, arXiv:2303.00848, sec. 3 (weight and distribution of levels as one function).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.levels import Schedule, logsnr
from diffusion.loss import level_of
from diffusion.parameterization import AnyParameterization
from diffusion.schedule import AnySchedule
from diffusion.times import AnyTimes
from diffusion.weight import AnyWeight
from lab.config import Config

SHOWN = 0.998  # share of the samples within the picture


class Curves(NamedTuple):
    """Functions of log-SNR on a grid; each (n,), float64.

    Attributes:
        logsnr: the grid, increasing.
        density: of the samples.
        weight: w, on the squared error of x0.
        on_x0: density times that weight.
        on_target: density times the weight on the squared error of the network's own target.
    """

    logsnr: Tensor
    density: Tensor
    weight: Tensor
    on_x0: Tensor
    on_target: Tensor


def curves(
    schedule: Schedule, parameterization: AnyParameterization, weight: AnyWeight, times: AnyTimes, points: int = 401
) -> Curves:
    """Evaluate density, weight and their product where the samples lie.

    Args:
        schedule: t -> (alpha, sigma).
        parameterization: what the network predicts.
        weight: of the loss.
        times: where in time the samples lie.
        points: of the grid.
    """
    ends = torch.tensor([(1 - SHOWN) / 2, (1 + SHOWN) / 2], dtype=torch.float64)
    low, high = sorted(logsnr(*schedule(times(ends, schedule))).tolist())
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    level = level_of(schedule.t_of(grid), schedule, times, parameterization)
    on_target = weight(level)
    on_x0 = on_target / level.out**2
    return Curves(grid, level.density, on_x0, level.density * on_x0, level.density * on_target)


@lru_cache(maxsize=8)
def chart(
    schedule: AnySchedule, parameterization: AnyParameterization, weight: AnyWeight, times: AnyTimes
) -> Image.Image:
    """Draw the curves; the module's text says how to read them.

    Drawn once for what was asked and kept, since it takes as long as many a step: the picture is only to be read.

    Args:
        schedule, parameterization, weight, times: as in ``curves``.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    made = curves(schedule, parameterization, weight, times)
    x = made.logsnr.numpy()
    samples, product = (each / torch.trapezoid(each, made.logsnr) for each in (made.density, made.on_target))
    figure = Figure(figsize=(8.0, 6.4), dpi=110)  # a layout that is computed takes half of the time
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(
        "What the loss weighs\n"
        f"schedule {named(schedule)}  ·  predicts {named(parameterization)}\n"
        f"weight {named(weight)}  ·  times {named(times)}",
        fontsize=10,
    )
    room = {"left": 0.12, "right": 0.97, "bottom": 0.08, "top": 0.88, "hspace": 0.06}
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw=room)
    above.fill_between(x, samples.numpy(), color="0.82", label="samples")
    above.plot(x, product.numpy(), color="tab:blue", lw=2, label="samples × weight")
    above.set_ylabel("on the network's own target\n(each area is 1)")
    above.set_ylim(bottom=0)
    for values, style, label in (
        (made.weight.numpy(), {"ls": "--", "color": "tab:orange"}, "weight"),
        (made.on_x0.numpy(), {"lw": 2, "color": "tab:blue"}, "samples × weight"),
        (np.exp(x), {"ls": ":", "color": "0.5"}, "likelihood (SNR)"),
    ):
        below.semilogy(x, values / values.max(), label=label, **style)
    below.set_ylabel("on the squared error of x0\n(each maximum is 1)")
    below.set_ylim(bottom=1e-6, top=3)
    below.yaxis.set_minor_locator(NullLocator())  # each of the 50 small ticks would cost as much as a curve
    below.yaxis.set_major_formatter("{x:g}")
    below.set_xlabel("noise  ←   log-SNR   →  data")
    for axes, corner in ((above, "upper left"), (below, "lower right")):
        axes.grid(alpha=0.3)
        axes.legend(loc=corner, fontsize=9)
        axes.margins(x=0)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def named(config: Config) -> str:
    """Name a configuration by its kind and by what is not as usual: "cosine (shift 1.4)"."""
    fields = type(config).model_fields
    values = {name: getattr(config, name) for name in fields}
    changed = [
        f"{name} {named(value) if isinstance(value, Config) else value}"
        for name, value in values.items()
        if value != fields[name].default
    ]
    return f"{values['kind']} ({', '.join(changed)})" if changed else str(values["kind"])
