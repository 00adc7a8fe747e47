"""The whole path in one command: train on the Shapes world, draw, evaluate, and show what came out.

    python scripts/demo.py                     # runs/demo from configs/shapes.yaml
    python scripts/demo.py --quick             # a few steps of everything, to see that it works

A second call goes on where the first was, or prints the finished table. Nothing is downloaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.interface.entry import EXIT_CODES, run

PROMPTS = (
    "a red circle",
    "a black ring",
    "a blue square",
    "a pink diamond",
    "a red circle left of a blue square",
    "a green triangle above an orange ring",
    "there is a cyan cross which is below a black diamond",
    "a picture of a yellow square right of a pink circle",
    "below an orange cross there is a blue ring",
    "we see a black triangle above a red square",
    "in the picture a pink cross sits left of a green circle",
    "",
)


def main(argv: Sequence[str]) -> int:
    """Run the demo; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="the run's folder (default runs/demo)")
    parser.add_argument("--quick", action="store_true", help="a few steps and pictures only")
    options = parser.parse_args(argv)
    import json

    from scripts import sample, train

    folder, summary = options.run, options.run / "summary.json"
    if not summary.exists():
        resume = (
            ["--resume", str(folder)]
            if (folder / "config.yaml").exists()
            else ["configs/shapes.yaml", "--run", str(folder)]
        )
        quick = ["train.steps=20", "train.optimizer.warm_up=5"] if options.quick and resume[0] != "--resume" else []
        if code := train.main([*resume, *quick]):
            return code
        sample.main([str(folder), *PROMPTS, "--num", "2" if options.quick else "4", "--out", str(folder / "demo")])
        _measure(folder, summary, 10 if options.quick else 500)
    _report(folder, json.loads(summary.read_text()))
    return 0


def _measure(folder: Path, summary: Path, num: int) -> None:
    import json
    import tempfile
    import time

    from lab.storage import write_whole
    from lab.training.signals import Stopper
    from scripts.assembly import drawing
    from scripts.evaluation import measure, panel

    asked = panel.of_shapes()
    trained = drawing.trained(folder)
    sampling = trained.experiment.stage.sampling
    facts = {
        "train_seconds": round(trained.state["seconds"], 1),
        "images_seen": trained.state["seen"],
        "num_parameters": sum(p.numel() for p in trained.pipeline.model.parameters()),
        "images_per_second": round(measure.images_per_second(trained, sampling), 1),
    }
    began = time.perf_counter()
    # All in one go, or the seconds would be those of the rest alone.
    with Stopper().listening() as stopper, tempfile.TemporaryDirectory() as kept:
        figures = measure.everything(trained, sampling, num, Path(kept), stopper.check, asked).figures
    facts["evaluate_seconds"] = round(time.perf_counter() - began, 1)
    write_whole(summary, (json.dumps({**facts, **figures}, indent=2) + "\n").encode())


def _report(folder: Path, summary: dict[str, object]) -> None:
    from scripts.evaluation import measure

    print(measure.table(summary))
    print(
        f"{summary['num_parameters']:,} parameters; trained {summary['train_seconds']} s on "
        f"{summary['images_seen']:,} images; draws {summary['images_per_second']} images/s; "
        f"evaluated in {summary['evaluate_seconds']} s"
    )
    print(
        f"pictures:    {', '.join(str(sheet) for sheet in (folder / 'demo').glob('grid-*.png'))}\n"
        f"figures:     {folder / 'summary.json'}\n"
        f"tensorboard: tensorboard --logdir {folder / 'tb'}"
    )


if __name__ == "__main__":
    run(main)
