"""Measure how well a trained run does what prompts say, and how close its pictures are to the world's.

    python scripts/evaluate.py runs/demo                       # everything, into runs/demo/evaluation-<hash>.json
    python scripts/evaluate.py runs/demo --num 50              # quickly
    python scripts/evaluate.py runs/demo --num 500 --json out.json --guidance 2
    python scripts/evaluate.py runs/demo --num 200 --best-of 1,2,4,8,16 --reject 6:0.5   # what selection gains

Prompts come from lists fixed by a seed, one picture each, none selected: ``pair`` (twice --num), held-out combinations,
held-out phrasings and ``single``. A picture is right when everything its prompt states is right and nothing is added; a
picture that cannot be read is wrong. Intervals are Wilson 95 % for proportions and as named for distances. The same
checkpoint and settings give the same figures, and are not measured twice: the hash in the file's name is theirs. What
became of each prompt is kept beside them in ``*.outcomes.jsonl``, and the first pictures of each list in
``*.pictures``: from these scripts/compare.py compares runs.

With --best-of it measures instead how the share of right pairs grows with the number of candidates that the best is
selected of, and with --reject what giving up the worst previews saves and loses. Selected and judged by the same
verifier, that is how far selection goes, and no figure of the run.

Ctrl-C, SIGTERM and SIGUSR1 stop it soon; after them, and after a kill, the same command goes on: finished chunks of
pictures wait in a folder beside the figures, ``*.drawn``, which is removed when these are written. Where memory runs
out, all figures are measured with half the chunk, and are those of the smaller --chunk, under its name.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import settings
from scripts.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from diffusion.pipeline import SamplingConfig
    from scripts.drawing import Trained


def main(argv: Sequence[str]) -> int:
    """Evaluate; see the module's text."""
    options = _parser().parse_args(argv)
    import json

    from lab.errors import Refused
    from scripts import drawing, measure

    least = 2 if options.no_distances else 10
    if options.num < least:
        way_out = "" if options.no_distances else ", or 2 with --no-distances"
        raise Refused(f"--num {options.num}: at least {least} prompts per kind{way_out}")
    if options.json and options.json.exists():
        raise Refused(f"--json {options.json} exists: name another file, or move it away")
    trained = drawing.trained(options.run, options.checkpoint, options.weights)
    sampling = drawing.sampling(trained.experiment, settings.asked(options))
    trained = drawing.with_variance(trained, sampling)
    if options.best_of:
        return _select(options, trained, sampling)
    path = _measure(options, trained, sampling)
    print(measure.table(json.loads(path.read_text())))
    print(path)
    return 0


def _measure(options: argparse.Namespace, trained: "Trained", sampling: "SamplingConfig") -> Path:
    """Write the figures, if they are not there, and give their file."""
    import json
    import shutil

    from diffusion.pipeline import within_memory
    from lab.evaluation import outcomes
    from lab.images import save_png
    from lab.storage import write_whole
    from lab.training.signals import Stopper
    from scripts import gallery, measure

    distances = not options.no_distances

    def name_of(sampling: "SamplingConfig") -> str:
        what = {"num": options.num, "distances": distances}
        return f"evaluation-{gallery.digest([trained.origin, sampling.model_dump(mode='json'), what])}"

    def complete(sampling: "SamplingConfig") -> Path:
        path: Path = options.json or options.run / f"{name_of(sampling)}.json"
        if not (path.exists() and outcomes.path_of(path).exists()):
            found = measure.everything(trained, sampling, options.num, kept, stopper.check, with_distances=distances)
            for kind, images in found.images.items():
                for index, image in enumerate(images):
                    save_png(outcomes.picture_of(path, kind, index), image)
            outcomes.write(outcomes.path_of(path), found.prompts, found.verdicts)
            write_whole(path, (json.dumps(found.figures, indent=2) + "\n").encode())
        return path

    kept = (options.json.parent if options.json else options.run) / f"{name_of(sampling)}.drawn"
    with Stopper().listening() as stopper:
        path = within_memory(complete, sampling)
    shutil.rmtree(kept, ignore_errors=True)
    return path


def _select(options: argparse.Namespace, trained: "Trained", sampling: "SamplingConfig") -> int:
    """Write and print what the best of several candidates gives."""
    import json
    import shutil
    from dataclasses import replace

    from diffusion.pipeline import within_memory
    from lab.data.shapes import prompts
    from lab.storage import write_whole
    from lab.training.signals import Stopper
    from scripts import gallery, measure, selecting

    sizes = selecting.read_sizes(options.best_of)
    plan = selecting.Plan(sizes[-1], options.scorer, tuple(map(selecting.read_round, options.reject)))
    plan.check(sampling)
    texts = prompts("pair", options.num, measure.PROMPT_SEED)
    what = [dict(trained.origin), sizes, options.scorer, options.reject, options.num]
    kept: list[Path] = []

    def complete(sampling: "SamplingConfig") -> Path:
        name = f"best-of-{gallery.digest([*what, sampling.model_dump(mode='json')])}"
        path: Path = options.json or options.run / f"{name}.json"
        if not path.exists():
            kept.append(path.with_name(f"{name}.drawn"))
            found = selecting.quality(replace(selector, sampling=sampling), texts, sizes, kept[-1])
            write_whole(path, (json.dumps(found, indent=2) + "\n").encode())
        return path

    with Stopper().listening() as stopper:
        selector = selecting.Selector(trained, measure.PROMPT_SEED, sampling, plan, stopper.check)
        path = within_memory(complete, sampling)
    for folder in kept:
        shutil.rmtree(folder, ignore_errors=True)
    print(selecting.table(json.loads(path.read_text()), options.num))
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory")
    add("--num", type=int, default=500, help="prompts per kind; pairs and diversity get twice as many (default 500)")
    add("--json", type=Path, help="where to write the figures (default RUN/evaluation-<hash>.json)")
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    add(
        "--no-distances",
        action="store_true",
        help="leave out the distances to real pictures, which need the extra 'evaluate'",
    )
    add("--best-of", metavar="N,N", help="measure the best of so many candidates instead, as in 1,2,4,8,16")
    settings.add_selection_flags(parser)
    settings.add_flags(parser)
    return parser


if __name__ == "__main__":
    run(main)
