"""Measure how good a trained run is, on what was held out of its data.

    python scripts/evaluate.py runs/demo                       # everything, into runs/demo/evaluation-<hash>.json
    python scripts/evaluate.py runs/demo --num 50              # quickly
    python scripts/evaluate.py runs/demo --num 500 --json out.json --guidance 2
    python scripts/evaluate.py runs/shapes64_vae               # an autoencoder: what it keeps of held-out pictures
    python scripts/evaluate.py runs/shapes64_fast              # a fast decoder: what it makes of small pictures

**A diffusion model**: whether it does what prompts say, and how close its pictures are to the world's. Prompts come
from lists fixed by a seed, one picture each, none selected: ``pair`` (twice --num), held-out combinations, held-out
phrasings and ``single``. A picture is right when everything its prompt states is right and nothing is added; a picture
that cannot be read is wrong. Intervals are Wilson 95 % for proportions and as named for distances.

**An autoencoder**: PSNR, SSIM and the perceptual distance of reconstructions, beside those of two baselines with no
more numbers per picture (a thumbnail, and a linear codec fitted on training pictures); the distance of the set of
reconstructions to the originals; scale and spectrum of the latents, and the use of codes; on Shapes, what a verifier
reads from the reconstructions. Beside the figures stand two sheets: originals, reconstructions and differences, and
straight lines between latents.

**A fast decoder**: the same of what it makes of held-out pictures that were made small, beside bicubic, Lanczos and the
best linear filter; how much of the small picture is found again in the large one (consistency, colours); the time that
a picture takes; a sheet.

The same checkpoint and settings give the same figures, and are not measured twice: the hash in the file's name is
theirs. Ctrl-C, SIGTERM and SIGUSR1 stop it soon; after them, and after a kill, the same command goes on: of a diffusion
model, finished chunks of pictures wait in a folder beside the figures, ``*.drawn``, which is removed when these are
written. Where memory runs out, all figures are measured with half the chunk, and are those of the smaller --chunk,
under its name.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import settings
from scripts.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from PIL import Image

    from diffusion.pipeline import SamplingConfig
    from scripts.drawing import Trained


def main(argv: Sequence[str]) -> int:
    """Evaluate; see the module's text."""
    options = _parser().parse_args(argv)
    import json

    from diffusion.stage import DiffusionConfig
    from lab.errors import Refused
    from lab.rundir import RunDir
    from scripts import assemble, measure, upscaling_lab, vae_lab

    if options.json and options.json.exists():
        raise Refused(f"--json {options.json} exists: name another file, or move it away")
    stage = assemble.load(RunDir.view(options.run).config_path, []).stage
    if isinstance(stage, DiffusionConfig):
        path, table = _of_prompts(options), measure.table
    else:
        lab = vae_lab if stage.kind == "vae" else upscaling_lab
        path, table = _of_pictures(options, lab.everything), lab.table
    print(table(json.loads(path.read_text())))
    print(path)
    return 0


def _of_prompts(options: argparse.Namespace) -> Path:
    """Write the figures of a diffusion model, if they are not there, and give their file."""
    from scripts import drawing

    _check_num(options, "prompts per kind", with_distances=10)
    trained = drawing.trained(options.run, options.checkpoint, options.weights)
    sampling = drawing.sampling(trained.experiment, settings.asked(options))
    return _measure(options, drawing.with_variance(trained, sampling), sampling)


def _measure(options: argparse.Namespace, trained: "Trained", sampling: "SamplingConfig") -> Path:
    """Measure pictures of prompts, in smaller chunks where memory runs out."""
    import json
    import shutil

    from diffusion.pipeline import within_memory
    from lab.storage import write_whole
    from lab.training.signals import Stopper
    from scripts import gallery, measure

    distances = not options.no_distances

    def name_of(sampling: "SamplingConfig") -> str:
        what = {"num": options.num, "distances": distances}
        return f"evaluation-{gallery.digest([trained.origin, sampling.model_dump(mode='json'), what])}"

    def complete(sampling: "SamplingConfig") -> Path:
        path: Path = options.json or options.run / f"{name_of(sampling)}.json"
        if not path.exists():
            figures = measure.everything(trained, sampling, options.num, kept, stopper.check, with_distances=distances)
            write_whole(path, (json.dumps(figures, indent=2) + "\n").encode())
        return path

    kept = (options.json.parent if options.json else options.run) / f"{name_of(sampling)}.drawn"
    with Stopper().listening() as stopper:
        path = within_memory(complete, sampling)
    shutil.rmtree(kept, ignore_errors=True)
    return path


def _of_pictures(
    options: argparse.Namespace, everything: "Callable[..., tuple[dict[str, Any], dict[str, Image.Image]]]"
) -> Path:
    """Write the figures and sheets of a model that maps pictures, if they are not there, and give the figures' file."""
    import json

    from lab.errors import Refused
    from lab.images import save_png
    from lab.storage import write_whole
    from lab.training.signals import Stopper
    from scripts import assemble, gallery

    _check_num(options, "pictures", with_distances=20)
    if asked := settings.asked(options):
        raise Refused(f"--{next(iter(asked)).replace('_', '-')} is for runs that draw from prompts: leave it out")
    found = assemble.saved(options.run, options.checkpoint, options.weights)
    networks = not options.no_distances
    name = gallery.digest([found.origin, {"num": options.num, "networks": networks}])
    path: Path = options.json or options.run / f"evaluation-{name}.json"
    if not path.exists():
        with Stopper().listening() as stopper:
            figures, sheets = everything(found, options.num, stopper.check, with_networks=networks)
        for part, sheet in sheets.items():
            save_png(path.with_name(f"{path.stem}-{part}.png"), sheet)
        write_whole(path, (json.dumps(figures, indent=2) + "\n").encode())
    return path


def _check_num(options: argparse.Namespace, what: str, with_distances: int) -> None:
    """Refuse too few of something."""
    from lab.errors import Refused

    least = 2 if options.no_distances else with_distances
    if options.num < least:
        way_out = "" if options.no_distances else ", or 2 with --no-distances"
        raise Refused(f"--num {options.num}: at least {least} {what}{way_out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory")
    add(
        "--num",
        type=int,
        default=500,
        help="prompts per kind (pairs and diversity get twice as many), or held-out pictures (default 500)",
    )
    add("--json", type=Path, help="where to write the figures (default RUN/evaluation-<hash>.json)")
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    add(
        "--no-distances",
        action="store_true",
        help="leave out what pretrained networks measure, which needs them and the extra 'evaluate'",
    )
    settings.add_flags(parser)
    return parser


if __name__ == "__main__":
    run(main)
