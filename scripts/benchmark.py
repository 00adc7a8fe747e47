"""Measure samplers, speed and overhead.

    python scripts/benchmark.py samplers runs/demo --quick       # every sampler and guidance rule, in a minute
    python scripts/benchmark.py samplers runs/demo               # the tables and plots of docs/samplers.md
    python scripts/benchmark.py reference runs/demo              # few calls against many, and the bar
    python scripts/benchmark.py combinations                     # schedules and predictions, trained for minutes each
    python scripts/benchmark.py overhead                         # what sampling costs beside the network
    python scripts/benchmark.py diffusers                        # side by side with diffusers
    python scripts/benchmark.py train                            # how fast training is, and where its time goes
    python scripts/benchmark.py trainer                          # the trainer beside a loop written by hand
    python scripts/benchmark.py evaluation                       # what figures cost beside the extractor's passes

``benchmark.py SUBCOMMAND --help`` says more. Times are medians of alternating repetitions: what else the machine does
meets all sides alike. Set OMP_NUM_THREADS to measure with fewer threads.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.interface.entry import EXIT_CODES, run

PRESET = Path("configs/shapes.yaml")
RECOMMENDED = "unipc_2:tangent"
FORM = "sampler[:spacing[:low:high]][:eta=1]"

SAMPLERS = """Measure every sampler over numbers of calls, and guidance over its settings.

    python scripts/benchmark.py samplers runs/demo --quick                     # a minute, to see that it works
    python scripts/benchmark.py samplers runs/demo                             # half an hour on two cores
    python scripts/benchmark.py samplers runs/demo --only samplers --samplers ddim unipc_3:logsnr --calls 5 10 20
    python scripts/benchmark.py samplers runs/demo --page docs/samplers.md     # also renew the page's tables and plots

Each cell is one setting: solver error (root-mean-square distance of x0 to a 1,000-step DDIM walk from the same noise;
none for stochastic samplers), prompt accuracy with its Wilson interval, kernel distance to held-out renders, seconds,
calls of the guided denoiser, and network evaluations. Cells and references are kept in --out as they are finished and
are not measured again for the same checkpoint, prompts and precision: the same command goes on where it was stopped.
"""

REFERENCE = """Find the samplers whose 10 calls are as exact as DDIM's 25, and 20 calls as DDIM's 100.

    python scripts/benchmark.py reference runs/demo                  # the recommended setting, 256 prompts
    python scripts/benchmark.py reference runs/demo --num 64 --settings unipc_2 dpmpp_2m:logsnr:-8:8 --guidance 3
    python scripts/benchmark.py reference runs/demo --num 64 --precision fp32  # without the rounding of bf16

Error is the root-mean-square distance of x0 to a 1,000-step DDIM walk from the same noise.
"""

COMBINATIONS = """Train usual combinations of schedule and prediction for minutes each; draw each with three samplers.

    python scripts/benchmark.py combinations                                   # 40 minutes on two cores
    python scripts/benchmark.py combinations --steps 100 --num 32              # to see that it works
    python scripts/benchmark.py combinations --page docs/samplers.md           # also renew the page's table

Cosine with eps, quadratic with eps, cosine with v, linear with zero terminal and v, and flow: each samples with DDPM of
250 steps, DDIM of 20 and the recommended setting. Bar: the shares of prompts obeyed differ by at most 5 points between
samplers. Runs and figures stay in --out, and the same command goes on where it was stopped.
"""

OVERHEAD = """Measure what sampling costs outside the network's own passes.

    python scripts/benchmark.py overhead                                       # the demo's network with random weights
    python scripts/benchmark.py overhead runs/demo --sampler unipc_3 --repeats 20

Bar: at most 5 % of the time at batch 16. Chunks of the pipeline and the bare passes that they make take turns.
"""

DIFFUSERS = """Put diffusers' scheduler loop and our pipeline side by side on the same network.

    python scripts/benchmark.py diffusers                                      # the demo's network with random weights
    python scripts/benchmark.py diffusers runs/demo --repeats 10

First both must draw the same pictures from the same noise, to 1e-4. Bars: at least 0.98 of their images per second at
equal sampler and steps, at least 1.15 with our recommended setting against their DDIM of 50 steps. Needs diffusers.
"""

TRAIN = """Measure the training step: what loading costs, where the rest goes, and diffusers' UNet beside ours.

    python scripts/benchmark.py train                                          # configs/shapes.yaml
    python scripts/benchmark.py train configs/shapes.yaml train.batch=64 --steps 40
    python scripts/benchmark.py train configs/emoji64.yaml                     # also with captions encoded in the loop
    python scripts/benchmark.py train --alone                                  # without diffusers

Bars: with the loader at least 0.95 of the images per second of one batch kept in memory; of the same widths, depth,
attention and text, 1.3 times the images per second of diffusers' UNet2DConditionModel. Nothing is written but the text
cache of a frozen encoder, which is filled before.
"""

TRAINER = """Put the trainer beside a loop of a dozen lines with the same network, loss, AdamW, clipping and average.

    python scripts/benchmark.py trainer                                        # configs/shapes.yaml
    python scripts/benchmark.py trainer configs/shapes.yaml runtime.threads=1 --micro-batches 32 --repeats 9

Bars: a step takes at most 1.03 of the time by hand, each further average at most 1.5 % more, and a checkpoint stalls
training for at most two steps. Nothing is written.
"""

EVALUATION = """Measure what an evaluation of the Shapes costs beside the bare passes of its extractor.

    python scripts/benchmark.py evaluation                                     # 1,000 pictures of 32 px
    python scripts/benchmark.py evaluation --num 200 --repeats 1               # quickly

Drawing is left out: renders stand for samples. Bar: all figures that need no download cost at most 1.15 of the passes
over samples and reference set. Nothing is written.
"""


def main(argv: Sequence[str]) -> int:
    """Measure; see the module's text."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "words")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings behind an option; argparse looks for them before the first one alone
        options.words += rest
    match options.what:
        case "samplers":
            from scripts.benchmarks import samplers

            return samplers.benchmark(options)
        case "reference":
            from scripts.benchmarks import reference

            return reference.benchmark(options)
        case "combinations":
            from scripts.benchmarks import combinations

            return combinations.benchmark(options)
        case "overhead":
            from scripts.benchmarks import overhead

            return overhead.benchmark(options)
        case "diffusers":
            from scripts.benchmarks import against_diffusers

            return against_diffusers.benchmark(options)
        case "evaluation":
            from scripts.benchmarks import evaluation

            return evaluation.benchmark(options)
        case "trainer":
            from scripts.benchmarks import bare_loop

            return bare_loop.benchmark(options)
        case _:
            from scripts.benchmarks import training

            return training.benchmark(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True, metavar="SUBCOMMAND")

    def kind(name: str, text: str) -> Any:
        return kinds.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _samplers(kind("samplers", SAMPLERS))
    _reference(kind("reference", REFERENCE))
    _combinations(kind("combinations", COMBINATIONS))
    _overhead(kind("overhead", OVERHEAD))
    _diffusers(kind("diffusers", DIFFUSERS))
    train = kind("train", TRAIN)
    _train(train)
    train.add_argument("--alone", action="store_true", help="leave diffusers' network out")
    evaluation = kind("evaluation", EVALUATION)
    evaluation.add_argument("--num", type=int, default=1000, help="pictures, and as many renders (default 1000)")
    evaluation.add_argument("--size", type=int, default=32, help="of the pictures (default 32)")
    evaluation.add_argument("--repeats", type=int, default=3, help="repetitions of each side (default 3)")
    trainer = kind("trainer", TRAINER)
    _train(trainer)
    trainer.add_argument(
        "--micro-batches", type=int, nargs="+", default=[8, 32], metavar="N", help="samples per pass (default 8 32)"
    )
    return parser


def _samplers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_run(parser)
    add("--num", type=int, default=32, help="prompts of each kind, single and pair (default 32)")
    add("--solver-num", type=int, default=64, help="pictures that the solver error is measured on (default 64)")
    add("--seed", type=int, default=2, help="of prompts and noise; not the evaluation's 0 (default 2)")
    add("--only", choices=("samplers", "guidance"), help="one of the two parts (default both)")
    add("--samplers", nargs="+", metavar="S", help=f"{FORM} (default: all that differ)")
    add("--calls", type=int, nargs="+", metavar="N", help="numbers of calls (default 5 8 10 15 20 25 50 100)")
    add("--guidance", type=float, help="scale of the samplers' part (default: the run's own)")
    add("--at", default=RECOMMENDED, metavar="S", help=f"sampler of the guidance part (default {RECOMMENDED})")
    add("--at-calls", type=int, default=20, metavar="N", help="its number of calls (default 20)")
    add("--scales", type=float, nargs="+", metavar="W", help="scales of the guidance part (default 1 1.5 2 3 5 7.5)")
    add("--guidance-errors", action="store_true", help="solver error of each guidance too; a long walk for each")
    add("--no-distances", action="store_true", help="leave out kernel distances, which need the extra 'evaluate'")
    add("--quick", action="store_true", help="few pictures, calls and settings, and a reference of 50 steps")
    add("--page", type=Path, help="a Markdown page whose tables are renewed; plots go into images/ beside it")
    _add_reference(parser)


def _reference(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--num", type=int, default=256, help="prompts, half of them pairs (default 256)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0], help="scales (default 1 3)")
    parser.add_argument(
        "--settings", nargs="+", default=[RECOMMENDED], metavar="S", help=f"{FORM} (default {RECOMMENDED})"
    )
    _add_reference(parser)


def _combinations(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", type=Path, default=PRESET, help=f"what differs in the combination only (default {PRESET})")
    add("--steps", type=int, default=600, help="training steps of each; 600 are three minutes (default 600)")
    add("--num", type=int, default=256, help="prompts of single objects (default 256)")
    add("--seed", type=int, default=2, help="of prompts and noise; not the evaluation's 0 (default 2)")
    add("--at", default=RECOMMENDED, metavar="S", help=f"the third sampler (default {RECOMMENDED})")
    add("--at-calls", type=int, default=20, metavar="N", help="its number of calls (default 20)")
    add("--out", type=Path, default=Path("runs/combinations"), help="folder of the runs (default runs/combinations)")
    add("--page", type=Path, help="a Markdown page whose table is renewed")


def _overhead(parser: argparse.ArgumentParser) -> None:
    _add_timed(parser)
    parser.add_argument("--sampler", default="ddim", help="which one (default ddim)")
    parser.add_argument("--steps", type=int, default=20, help="of a walk (default 20)")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale; 1 is the hardest case (default 1)")


def _diffusers(parser: argparse.ArgumentParser) -> None:
    _add_timed(parser)
    parser.add_argument("--steps", type=int, default=20, help="of both at equal settings (default 20)")


def _train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("words", nargs="*", metavar="PRESET key=value", help="a preset (default configs/shapes.yaml) and settings")
    add("--steps", type=int, default=10, help="optimizer steps per repetition (default 10)")
    add("--repeats", type=int, default=5, help="repetitions of each side (default 5)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory; only read, but for --out's default")
    parser.add_argument("--out", type=Path, help="folder for what is measured (default RUN/benchmark)")
    parser.add_argument("--checkpoint", help="a folder under RUN/ckpt (default: the newest good one)")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of the network (default: the run's own)")
    parser.add_argument("--reference-steps", type=int, default=1000, help="of the reference walk (default 1000)")


def _add_timed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, nargs="?", help="a run directory (default: configs/shapes.yaml with random weights)")
    add("--preset", type=Path, default=PRESET, help=f"the network without a run (default {PRESET})")
    add("--batch", type=int, default=16, help="images per pass (default 16)")
    add("--repeats", type=int, default=9, help="repetitions of each side (default 9)")


if __name__ == "__main__":
    run(main)
