"""Which sampler and spacing reach in few calls what DDIM reaches in many.

The error of a setting is the root-mean-square distance of its x0 to a 1,000-step DDIM walk from the same noise. The
bar: 10 calls are to be as near as DDIM with 25, and 20 calls as near as DDIM with 100.
"""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from lab.errors import Refused
from scripts import assemble
from scripts.benchmarks.references import References
from scripts.benchmarks.setting import Setting, is_deterministic, sampling_of, setting
from scripts.benchmarks.walks import in_precision, rms, walk, wanted

BAR = {10: 25, 20: 100}  # calls of a setting: calls of DDIM that it has to match
SEED = 2
DDIM = setting("ddim:uniform")


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    trained = in_precision(assemble.trained(options.run, options.checkpoint), options.precision)
    requests, _ = wanted(options.num // 2, SEED)
    references = References(trained, options.out or options.run / "benchmark", SEED, options.reference_steps)
    settings = [setting(text) for text in options.settings]
    asked = {
        scale: [
            *(sampling_of(trained.experiment, DDIM, calls, guidance=scale) for calls in BAR.values()),
            *(sampling_of(trained.experiment, each, calls, guidance=scale) for each in settings for calls in BAR),
        ]
        for scale in options.guidance
    }
    if noisy := [each.sampler for samplings in asked.values() for each in samplings if not is_deterministic(each)]:
        raise Refused(f"{noisy[0]} with these settings draws noise on its way, so there is nothing to be near to")
    print(f"{len(requests)} prompts, {trained.pipeline.runtime.precision}, reference of {references.steps} steps")
    for scale, samplings in asked.items():
        exact = references.of(requests, samplings[0])
        errors = [
            rms(walk(trained.pipeline, requests, SEED, each, f"{each.sampler} {each.steps}").images, exact)
            for each in tqdm(samplings, unit="setting", desc=f"guidance {scale:g}")
        ]
        print(verdict(scale, settings, errors), flush=True)
    return 0


def verdict(scale: float, settings: Sequence[Setting], errors: Sequence[float]) -> str:
    """Lay out errors: first DDIM's for each part of the bar, then each setting's in the same order."""
    goals, rest = errors[: len(BAR)], errors[len(BAR) :]
    rows = [f"\nguidance {scale:g}: RMS distance of x0 to the reference"]
    rows.append(" " * 28 + "".join(f"{f'{calls} calls':>12}" for calls in BAR) + "   bar")
    rows.append(f"{DDIM.text:<28}" + "".join(f"{goal:>12.5f}" for goal in goals) + f"   at {list(BAR.values())}")
    for k, each in enumerate(settings):
        own = rest[k * len(BAR) : (k + 1) * len(BAR)]
        met = all(error <= goal for error, goal in zip(own, goals, strict=True))
        rows.append(
            f"{each.text:<28}" + "".join(f"{error:>12.5f}" for error in own) + f"   {'met' if met else 'missed'}"
        )
    return "\n".join(rows)
