"""Every sampler over numbers of calls, and guidance over its settings: the figures of docs/samplers.md."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from lab.data.shapes import prompts_hash
from lab.errors import Refused
from scripts.assembly import drawing, experiments
from scripts.assembly.drawing import Trained
from scripts.benchmarks import plots, tables
from scripts.benchmarks.cells import PLUS_PLUS, Cell, plan
from scripts.benchmarks.figures import Figures, Judge, Sheet, cost
from scripts.benchmarks.references import References
from scripts.benchmarks.setting import is_deterministic
from scripts.benchmarks.walks import in_precision, walk, wanted

QUICK_NUM, QUICK_STEPS = 4, 50
LEAST = 2  # of each kind, for a kernel distance


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    if options.quick:
        options.num, options.reference_steps = QUICK_NUM, QUICK_STEPS
    least = 1 if options.no_distances else LEAST
    if options.num < least:
        raise Refused(f"--num {options.num}: at least {least} prompts of each kind, or 1 with --no-distances")
    if options.page:
        tables.read_page(options.page, tables.PARTS)  # a page without room is told now, not in half an hour
    trained = in_precision(drawing.trained(options.run, options.checkpoint), options.precision)
    cells = plan(trained.experiment, options)
    folder = options.out or options.run / "benchmark"
    sheet, found = measure(trained, cells, folder, options)
    text = tables.everything(cells, found, sheet.what)
    print("\n\n".join(text.values()))
    pictures = options.page.parent / "images" if options.page else folder
    plots.draw(cells, found, pictures)
    if options.page:
        tables.renew(options.page, text)
    print(f"\n{sheet.path}; plots in {pictures}")
    return 0


def measure(
    trained: Trained, cells: list[Cell], folder: Path, options: argparse.Namespace
) -> tuple[Sheet, list[Figures]]:
    """Measure the cells that the sheet does not hold yet.

    Returns:
        The sheet, and the figures of each cell.
    """
    requests, kinds = wanted(options.num, options.seed)
    near = requests[: options.solver_num]
    runtime = trained.pipeline.runtime
    what = {
        **trained.origin,
        "device": runtime.device.type,
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
        "prompts": {
            "num": options.num,
            "seed": options.seed,
            "hash": prompts_hash([request.prompt for request in requests]),
        },
        "reference": {"num": len(near), "steps": options.reference_steps},
        "distances": not options.no_distances,
        "guidance_errors": options.guidance_errors,
    }
    sheet = Sheet(folder, what)
    references = References(trained, folder, options.seed, options.reference_steps)
    judge: Judge | None = None
    found: list[Figures] = []
    for cell in tqdm(cells, unit="cell", desc="samplers"):
        recipe = cell.sampling.model_dump(mode="json")
        figures, near_to = sheet.get(recipe), has_reference(cell, options)
        if figures is None or (near_to and "solver_error" not in figures):
            judge = judge or Judge(
                experiments.world_of(trained.experiment),
                [request.prompt for request in requests],
                kinds,
                options.seed,
                with_distances=not options.no_distances,
            )
            name = f"{cell.series} {cell.at:g}"
            exact = references.of(near, cell.sampling) if near_to else None
            walked = walk(trained.pipeline, requests, options.seed, cell.sampling, name)
            figures = {**cost(walked, exact), **judge(walked.images)}
            sheet.keep(recipe, figures)
        # A setting may stand in both parts; its error belongs where it was asked for.
        found.append(figures if near_to else {name: value for name, value in figures.items() if name != "solver_error"})
    return sheet, found


def has_reference(cell: Cell, options: argparse.Namespace) -> bool:
    """Say whether a cell has an exact solution that is to be known; CFG++ is defined by steps and has none."""
    wanted_one = cell.part == "samplers" or options.guidance_errors
    return wanted_one and is_deterministic(cell.sampling) and cell.series != PLUS_PLUS
