"""Which sampler and spacing reach in few calls what DDIM reaches in many.

The error of a setting is the root-mean-square distance of its x0 to a 1,000-step DDIM walk from the same noise. The
bar: 10 calls are to be as near as DDIM with 25, and 20 calls as near as DDIM with 100.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tqdm import tqdm

from diffusion.pipeline import SamplingConfig
from lab.errors import Refused
from scripts import assemble
from scripts.benchmarks.references import References
from scripts.benchmarks.walks import in_precision, rms, steps_for, walk, wanted

BAR = {10: 25, 20: 100}  # calls of a setting: calls of DDIM that it has to match
SEED = 2


class Setting(NamedTuple):
    """A sampler and where its steps lie, as it is written on the command line.

    Attributes:
        text: sampler:spacing, or sampler:spacing:low:high.
        changes: the same as settings of the sampler.
    """

    text: str
    changes: Mapping[str, object]


def setting(text: str) -> Setting:
    """Read a setting such as "unipc_2:logsnr:-8:8".

    Raises:
        Refused: it has another form.
    """
    sampler, *rest = text.split(":")
    changes: dict[str, object] = {"sampler": sampler}
    try:
        match rest:
            case [spacing]:
                changes |= {"spacing": spacing}
            case [spacing, low, high]:
                changes |= {"spacing": spacing, "logsnr_limits": [float(low), float(high)]}
            case _:
                raise ValueError
    except ValueError:
        raise Refused(f"{text!r} is no setting: give sampler:spacing or sampler:spacing:low:high") from None
    return Setting(text, changes)


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    trained = in_precision(assemble.trained(options.run, options.checkpoint), options.precision)
    requests, _ = wanted(max(options.num // 2, 1), SEED)
    references = References(trained, options.out or options.run / "benchmark", SEED, options.reference_steps)
    ddim = setting("ddim:uniform")
    settings = [setting(text) for text in options.settings]
    asked = {
        scale: [
            *(_sampling(trained, ddim, calls, scale) for calls in BAR.values()),
            *(_sampling(trained, each, calls, scale) for each in settings for calls in BAR),
        ]
        for scale in options.guidance
    }
    print(f"{len(requests)} prompts, {trained.pipeline.runtime.precision}, {references.steps}-step reference")
    for scale, samplings in asked.items():
        exact = references.of(requests, samplings[0])
        errors = [
            rms(walk(trained.pipeline, requests, SEED, each, f"{each.sampler} {each.steps}").images, exact)
            for each in tqdm(samplings, unit="setting", desc=f"guidance {scale:g}")
        ]
        print(verdict(scale, settings, errors))
    return 0


def _sampling(trained: assemble.Trained, each: Setting, calls: int, scale: float) -> SamplingConfig:
    """The run's own settings with another sampler, as many steps as the calls allow, and another guidance."""
    changes = {**each.changes, "steps": steps_for(str(each.changes["sampler"]), calls), "guidance": scale}
    fresh = {name: SamplingConfig.model_fields[name].default for name in ("eta", "churn", "variance", "times")}
    return assemble.sampling(trained.experiment, {**fresh, "logsnr_limits": LIMITS, **changes})


LIMITS = SamplingConfig.model_fields["logsnr_limits"].default


def verdict(scale: float, settings: Sequence[Setting], errors: Sequence[float]) -> str:
    """Lay out errors: first DDIM's for each part of the bar, then each setting's in the same order."""
    goals, rest = errors[: len(BAR)], errors[len(BAR) :]
    rows = [f"\nguidance {scale:g}: RMS distance of x0 to the reference"]
    rows.append(" " * 28 + "".join(f"{f'{calls} calls':>12}" for calls in BAR) + "   bar")
    rows.append(f"{'ddim:uniform':<28}" + "".join(f"{goal:>12.5f}" for goal in goals) + f"   at {list(BAR.values())}")
    for k, each in enumerate(settings):
        own = rest[k * len(BAR) : (k + 1) * len(BAR)]
        met = all(error <= goal for error, goal in zip(own, goals, strict=True))
        rows.append(
            f"{each.text:<28}" + "".join(f"{error:>12.5f}" for error in own) + f"   {'met' if met else 'missed'}"
        )
    return "\n".join(rows)
