"""What an evaluation of the Shapes costs beside the passes of its extractor: distances, neighbours, and reading.

Three sides take turns over the same pictures: the bare passes of the network, of samples and reference set; the figures
that are read from its features, passes included, with no feature known before; and the reading of the samples by the
verifier.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from torch import Tensor

from lab.data.shapes import ShapesConfig, prompts
from lab.errors import Refused
from lab.evaluation.features import CHUNK, extract
from lab.evaluation.prompt_accuracy import accuracy
from lab.images import from_uint8
from scripts.benchmarks.timing import alternating, met
from scripts.evaluation import measure, panel

BAR = 1.15
LEAST = 20


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    if options.num < LEAST:
        raise Refused(f"--num {options.num}: at least {LEAST} pictures")
    asked = panel.of_shapes()
    world = ShapesConfig(size=options.size)
    # Renders stand for samples: what is measured costs the same for both.
    pictures, reference = measure.renders(world, 2 * options.num).split(options.num)
    texts = prompts("pair", options.num, measure.PROMPT_SEED)
    sides = {
        "passes": lambda: [extract([side], asked.extractors["lite0"], chunk=CHUNK) for side in (pictures, reference)],
        "features": lambda: _figures(asked, pictures, reference),
        "reading": lambda: accuracy(from_uint8(pictures), texts),
    }
    seconds = alternating(sides, options.repeats, "evaluation")
    passes, features, reading = (median(each) for each in seconds.values())
    print(
        f"{options.num} pictures of {options.size} px against {options.num} renders, {asked.extractors['lite0'].name}"
    )
    print(f"bare passes over both:           {passes:.1f} s")
    print(f"with the figures of features:    {features:.1f} s, {features / passes:.3f} of the passes")
    print(f"with reading what is drawn too:  {features + reading:.1f} s, {(features + reading) / passes:.3f}")
    print(met((features + reading) / passes, BAR, at_least=False))
    return 0


def _figures(asked: panel.Panel, pictures: Tensor, reference: Tensor) -> None:
    """Measure everything that is read from features, and forget it."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        fresh = panel.Panel(asked.metrics, asked.networks, asked.extractors, kept / "cache")
        fresh.likeness(pictures, (), reference, kept, lambda: None)
