"""Compare runs: do two checkpoints differ, and is one configuration better than another?

    python scripts/compare.py runs/one runs/other                           # two checkpoints, prompt by prompt
    python scripts/compare.py --a runs/s/rate-0.01-seed* --b runs/s/rate-0.02-seed*    # two configurations, by runs
    python scripts/compare.py --a runs/a* --b runs/b* --kind single --report report.html
    python scripts/compare.py --list runs --sort pair --reverse --where train.batch=32 "pair>0.5"

Nothing is drawn: what became of each prompt is read from what scripts/evaluate.py left in the runs, so evaluate them
with the same --num first (scripts/sweep.py does).

These are two questions, and an answer to the first is none to the second. *Do two checkpoints differ?* Both answered
the same prompts from the same noise: McNemar's exact test for verdicts, random swaps for scores. *Is a configuration
better?* Another seed of the same configuration gives another checkpoint, so the unit is the training run: at least
three of each, a t interval over runs and prompts, in pairs where both sides have the same seeds, and the smallest
difference that so many runs find with 80 % power. With fewer runs the answer is how many it would take.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from scripts.comparison.answers import Answer
    from scripts.comparison.evaluations import Evaluation


def main(argv: Sequence[str]) -> int:
    """Compare; see the module's text."""
    parser = _parser()
    options = parser.parse_args(argv)
    two, sides = len(options.runs) == 2, bool(options.a and options.b)
    if [two, sides, options.list is not None].count(True) != 1 or len(options.runs) not in (0, 2):
        parser.error("name two runs, or --a RUNS --b RUNS for two configurations, or --list FOLDER")
    from lab.errors import Refused
    from scripts.comparison import answers, evaluations, listing

    if options.list is not None:
        print(listing.table(listing.rows(options.list), options.sort, options.where, largest_first=options.reverse))
        return 0
    if options.report and options.report.exists():
        raise Refused(f"--report {options.report} exists: name another file, or move it away")
    if two:
        a, b = ([each] for each in evaluations.together(options.runs))
        answer = answers.checkpoints(a[0], b[0], options.kind, options.what)
    else:
        chosen = evaluations.together([*options.a, *options.b])
        a, b = chosen[: len(options.a)], chosen[len(options.a) :]
        answer = answers.configurations(a, b, options.kind, options.what, pair=not options.unpaired)
    print(in_words(answer))
    if options.report:
        _write(options.report, answer, a, b)
    return 0


def in_words(answer: "Answer") -> str:
    """Lay an answer out for a terminal."""
    from scripts.comparison.listing import aligned

    parts = [[answer.question], answer.facts, aligned(answer.header, answer.rows), answer.verdict]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _write(path: Path, answer: "Answer", a: Sequence["Evaluation"], b: Sequence["Evaluation"]) -> None:
    from lab.storage import write_whole
    from scripts.comparison import report

    write_whole(path, report.page(answer, a, b).encode())
    print(f"\n{path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="two run directories, or two files of figures in them: A and B")
    add("--a", nargs="+", type=Path, metavar="RUN", help="runs of configuration A, which differ in their seed alone")
    add("--b", nargs="+", type=Path, metavar="RUN", help="runs of configuration B")
    add("--kind", default="pair", help="of prompts, on which the verdict is given (default pair)")
    add(
        "--what",
        default="right",
        help="right, readable, agreement (share of the prompt's attributes that are right), or one attribute, such as "
        "colour or relation (default right)",
    )
    add("--unpaired", action="store_true", help="do not pair runs by seed: chosen before the figures are looked at")
    add("--report", type=Path, metavar="FILE", help="also write a page of HTML, complete in itself")
    add("--list", type=Path, metavar="FOLDER", help="list the runs below a folder")
    add("--sort", default="name", help="with --list: a column, or a key of the configuration (default name)")
    add("--reverse", action="store_true", help="with --sort: the largest first")
    add(
        "--where",
        nargs="+",
        default=[],
        metavar="CONDITION",
        help="with --list: a column or a key of the configuration, one of = != > < >= <=, and a value",
    )
    return parser


if __name__ == "__main__":
    run(main)
