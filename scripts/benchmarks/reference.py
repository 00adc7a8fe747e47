"""Which sampler and spacing reach in few calls what DDIM reaches in many.

The error of a setting is the root-mean-square distance of its x0 to a 1,000-step DDIM walk from the same noise. The
bar: 10 calls are to be as near as DDIM with 25, and 20 calls as near as DDIM with 100.
"""

import argparse
from collections.abc import Sequence

from torch import Tensor

from diffusion.pipeline import SamplingConfig
from lab.errors import Refused
from scripts.assembly import drawing
from scripts.benchmarks.references import References
from scripts.benchmarks.setting import Setting, is_deterministic, sampling_of, setting
from scripts.benchmarks.walks import in_precision, rms, walk, wanted

BAR = {10: 25, 20: 100}  # calls of a setting: calls of DDIM that it has to match
SEED = 2
DDIM = setting("ddim:uniform")
WIDTH = 28  # of the settings' column


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    trained = in_precision(drawing.trained(options.run, options.checkpoint), options.precision)
    requests, _ = wanted(options.num // 2, SEED)
    references = References(trained, options.out or options.run / "benchmark", SEED, options.reference_steps)
    settings = [setting(text) for text in options.settings]

    def sampling(one: Setting, calls: int, scale: float) -> SamplingConfig:
        made = sampling_of(trained.experiment, one, calls, guidance=scale)
        if not is_deterministic(made):
            raise Refused(f"{one.text} draws noise on its way, so there is no exact solution for it to be near to")
        return made

    # All of them before the first is measured, so that a mistake is told at once.
    goals = {scale: [sampling(DDIM, calls, scale) for calls in BAR.values()] for scale in options.guidance}
    asked = {(scale, one.text): [sampling(one, calls, scale) for calls in BAR] for scale in goals for one in settings}

    def errors(samplings: Sequence[SamplingConfig], exact: Tensor) -> list[float]:
        return [
            rms(walk(trained.pipeline, requests, SEED, one, f"{one.sampler} {one.steps}").images, exact)
            for one in samplings
        ]

    print(f"{len(requests)} prompts, {trained.pipeline.runtime.precision}, reference of {references.steps} steps")
    for scale, yardsticks in goals.items():
        exact = references.of(requests, yardsticks[0])
        goal = errors(yardsticks, exact)
        print(heading(scale, goal), flush=True)
        for one in settings:
            print(row(one, errors(asked[scale, one.text], exact), goal), flush=True)
    return 0


def heading(scale: float, goal: Sequence[float]) -> str:
    """Head the rows of a guidance scale with the errors of DDIM that are to be matched."""
    return (
        f"\nguidance {scale:g}: RMS distance of x0 to the reference\n"
        + " " * WIDTH
        + "".join(f"{f'{calls} calls':>12}" for calls in BAR)
        + f"   bar\n{DDIM.text:<{WIDTH}}"
        + "".join(f"{error:>12.5f}" for error in goal)
        + f"   at {' and '.join(str(calls) for calls in BAR.values())} calls"
    )


def row(one: Setting, errors: Sequence[float], goal: Sequence[float]) -> str:
    """Give the errors of a setting, and whether every part of the bar is met."""
    met = all(error <= limit for error, limit in zip(errors, goal, strict=True))
    return f"{one.text:<{WIDTH}}" + "".join(f"{error:>12.5f}" for error in errors) + f"   {'met' if met else 'missed'}"
