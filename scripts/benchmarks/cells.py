"""Which settings are measured: cells, in series that tables and plots show together."""

import argparse
from dataclasses import dataclass

from diffusion.pipeline import SamplingConfig
from scripts.assembly.experiments import TextToImageExperiment
from scripts.benchmarks.setting import sampling_of, setting

CALLS = (5, 8, 10, 15, 20, 25, 50, 100)
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
QUICK_CALLS, QUICK_SCALES, QUICK_STRENGTHS = (5, 10), (1.0, 3.0), (0.6,)

# euler and euler_ancestral are left out: they are ddim, with eta 0 and 1.
SAMPLERS = (
    "ddim:uniform",
    "unipc_2:tangent",
    "dpmpp_2m:tangent",
    "heun:uniform",
    "dpmpp_2m:uniform",
    "dpmpp_3m:uniform",
    "unipc_2:uniform",
    "unipc_3:uniform",
    "plms:uniform",
    "lms:uniform",
    "ddpm:uniform",
    "ddim:uniform:eta=1",
    "dpmpp_2m:uniform:eta=1",
)
PLUS_PLUS = "cfg_plus_plus (on ddim; its strength)"
RULES: dict[str, dict[str, object]] = {
    "plain": {},
    "interval -5 to 3": {"interval": (-5.0, 3.0)},
    "rescale 0.7": {"rescale": 0.7},
    "apg": {"rule": {"kind": "apg"}},
    "cfg_zero_star": {"rule": {"kind": "cfg_zero_star"}},
}


@dataclass(frozen=True)
class Cell:
    """One setting to measure.

    Attributes:
        part: "samplers" or "guidance".
        series: the row that it belongs to.
        at: its place in the row: calls that are allowed, a guidance scale, or the strength of CFG++.
        sampling: the setting.
    """

    part: str
    series: str
    at: float
    sampling: SamplingConfig


def plan(experiment: TextToImageExperiment, options: argparse.Namespace) -> list[Cell]:
    """List what the options ask for, the cheapest of each part first.

    Raises:
        Refused: a setting that cannot be.
    """
    cells: list[Cell] = []
    if options.only != "guidance":
        cells += _samplers(experiment, options)
    if options.only != "samplers":
        cells += _guidance(experiment, options)
    return sorted(cells, key=lambda cell: (cell.part != "samplers", cell.at))


def _samplers(experiment: TextToImageExperiment, options: argparse.Namespace) -> list[Cell]:
    changes: dict[str, object] = {"chunk": _chunk(experiment, options), "guide": {}}
    if options.guidance is not None:
        changes["guidance"] = options.guidance
    return [
        Cell("samplers", text, calls, sampling_of(experiment, setting(text), calls, **changes))
        for text in options.samplers or SAMPLERS
        for calls in options.calls or (QUICK_CALLS if options.quick else CALLS)
    ]


def _guidance(experiment: TextToImageExperiment, options: argparse.Namespace) -> list[Cell]:
    """Every rule at every scale, on the recommended sampler; CFG++ at every strength, on DDIM as it must be."""
    fixed, calls = setting(options.at), 10 if options.quick else options.at_calls
    chunk = _chunk(experiment, options)
    scales = options.scales or (QUICK_SCALES if options.quick else SCALES)
    cells = [
        Cell("guidance", name, scale, sampling_of(experiment, fixed, calls, chunk=chunk, guidance=scale, guide=guide))
        for name, guide in RULES.items()
        for scale in scales
        if scale != 1 or name in ("plain", "cfg_zero_star")  # a scale of 1 is off for the others
    ]
    for strength in QUICK_STRENGTHS if options.quick else STRENGTHS:
        guide = {"rule": {"kind": "cfg_plus_plus", "strength": strength}}
        sampling = sampling_of(experiment, setting("ddim:uniform"), calls, chunk=chunk, guide=guide)
        cells.append(Cell("guidance", PLUS_PLUS, strength, sampling))
    return cells


def _chunk(experiment: TextToImageExperiment, options: argparse.Namespace) -> int:
    """The run's own chunk, or less where there are not so many pictures."""
    num: int = options.num
    return min(experiment.stage.sampling.chunk, 2 * num)
