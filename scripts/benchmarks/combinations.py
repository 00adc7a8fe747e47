"""The combinations of schedule and prediction that are trained most, each for minutes, each drawn by three samplers.

All of them are to learn, and what share of prompts is obeyed is not to depend on the sampler that walks the model.
"""

import argparse
from pathlib import Path

import torch

from diffusion.pipeline import Request
from lab.data.shapes import prompts, prompts_hash
from lab.evaluation.intervals import wilson
from lab.evaluation.prompt_accuracy import judge
from lab.images import from_uint8, to_uint8
from scripts import train
from scripts.assembly import drawing
from scripts.benchmarks import tables
from scripts.benchmarks.figures import Figures, Sheet
from scripts.benchmarks.setting import Setting, sampling_of, setting
from scripts.benchmarks.timing import met
from scripts.benchmarks.walks import refuse_judges_seed, walk

TASK = ("data.mixture={single: 1.0}", "data.warm_up_samples=0", "evaluate.every_steps=0", "train.preview_every=0")
COMBINATIONS = {
    "cosine, eps": ("cosine", "eps"),
    "quadratic, eps": ("quadratic", "eps"),
    "cosine, v": ("cosine", "v"),
    "linear with zero terminal, v": ("linear, zero_terminal: true", "v"),
    "flow, flow": ("flow", "flow"),
}  # what the table says: schedule and parameterization, as in a configuration
DDPM, DDIM = (setting("ddpm:uniform"), 250), (setting("ddim:uniform"), 20)
PART = "combinations"
BAR = 0.05  # between the shares of two samplers


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    refuse_judges_seed(options.seed)
    if options.page:
        tables.read_page(options.page, (PART,))
    walks = (DDPM, DDIM, (setting(options.at), options.at_calls))
    heads = ["schedule, prediction", *(f"{one.text} {calls}" for one, calls in walks), "largest difference"]
    rows, largest = [_line(heads), "|---" * len(heads) + "|"], 0.0
    for name, (schedule, parameterization) in COMBINATIONS.items():
        folder = options.out / name.replace(", ", "-").replace(" ", "_")
        changes = (
            f"stage.schedule={{kind: {schedule}}}",
            f"stage.parameterization={{kind: {parameterization}}}",
            f"train.steps={options.steps}",
        )
        if code := train.main([str(options.preset), *TASK, *changes, "--run", str(folder)]):
            return code
        found = [_measure(folder, one, calls, options) for one, calls in walks]
        apart = apart_by(found)
        largest = max(largest, apart)
        rows.append(_row(name, found, apart))
        print(rows[-1], flush=True)
    text = (
        f"{options.steps} training steps on single objects; share of {options.num} prompts obeyed, the same prompts "
        "and the same noise to start from in every column, with its Wilson 95 % interval; behind it the share of "
        "pictures that the verifier can read at all, which is 0 of noise."
    )
    print("\n".join([text, "", *rows]))
    print(met(largest, BAR, at_least=False))
    if options.page:
        tables.renew(options.page, {PART: "\n".join([text, "", *rows])})
    return 0


def _measure(folder: Path, one: Setting, calls: int, options: argparse.Namespace) -> Figures:
    """Draw with a sampler and judge, or take what an earlier call of the command found."""
    trained = drawing.trained(folder)
    texts = prompts("single", options.num, options.seed)
    sampling = sampling_of(trained.experiment, one, calls)
    common = {
        **trained.origin,
        "prompts": prompts_hash(texts),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
    }
    sheet, recipe = Sheet(folder / "benchmark", common), sampling.model_dump(mode="json")
    figures = sheet.get(recipe)
    if figures is None:
        requests = [Request(text, number) for number, text in enumerate(texts)]
        walked = walk(trained.pipeline, requests, options.seed, sampling, f"{folder.name} {one.text}")
        pictures = from_uint8(to_uint8(walked.images))
        verdicts = [judge(picture, text) for picture, text in zip(pictures, texts, strict=True)]
        figures = {"right": sum(verdict.right for verdict in verdicts), "n": len(texts)}
        figures["readable"] = sum(not verdict.problem for verdict in verdicts)
        sheet.keep(recipe, figures)
    return figures


def apart_by(found: list[Figures]) -> float:
    """Give the largest difference of the shares of prompts obeyed."""
    shares: list[float] = [figures["right"] / figures["n"] for figures in found]
    return max(shares) - min(shares)


def _row(name: str, found: list[Figures], apart: float) -> str:
    """Lay out one combination: the shares with their intervals, what could be read, and how far they lie apart."""
    cells = []
    for figures in found:
        right, n = figures["right"], figures["n"]
        low, high = wilson(right, n)
        cells.append(f"{right / n:.2f} ({low:.2f} - {high:.2f}), {figures['readable'] / n:.2f}")
    return _line([name, *cells, f"{apart:.3f}"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
