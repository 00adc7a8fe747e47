"""Make pictures larger with a run that has learned to (stage.kind=fast or cascade).

    python scripts/upscale.py runs/emoji256_fast photo.png --out large
    python scripts/upscale.py runs/emoji256_fast a.png b.jpg --out large --tile 128    # in less memory
    python scripts/upscale.py runs/shapes64_cascade small.png --prompt "a red circle" --out large
    python scripts/upscale.py runs/emoji256_cascade small.png --back-projection 8 --seed 1 --out large

A fast decoder (stage.kind=fast) makes a picture in one pass. A cascade (stage.kind=cascade) draws its details by
diffusion: it hears a prompt if it was trained on captions, another --seed gives other details, and the settings of the
sampler are at your choice. What it draws does not depend on which pictures are given together.

Writes NAME-x4.png (for a factor of 4) for each picture, and NAME-x4-sheet.png with what a bicubic filter makes of it
beside. Large pictures are made in tiles: of a fast decoder the result is the same, a cascade blends tiles that walk in
one field of noise. Transparency is kept, enlarged by the bicubic filter; grey pictures stay grey, of 16 bits too,
and come out with 8. Animations and pictures of 32 bits a value are refused, and nothing is overwritten.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface import settings
from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from diffusion.pipeline import Poll
    from scripts.assembly.saved import Saved
    from superres.pipeline import Upscaler


def main(argv: Sequence[str]) -> int:
    """Enlarge; see the module's text."""
    options = _parser().parse_args(argv)
    from tqdm import tqdm

    from lab.errors import Refused
    from lab.training.signals import Stopper
    from scripts.assembly import upscaling

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refused("one process enlarges pictures: leave torchrun out")
    if options.tile < 0:
        raise Refused(f"--tile {options.tile}: a side in pixels, or 0 for none")
    upscaler = upscaling.upscaler(_found(options), options.tile)
    targets = _targets(options.pictures, options.out, upscaler.factor)
    with Stopper().listening() as stopper:
        for source, target in tqdm(targets.items(), unit="picture", desc="upscale", disable=None):
            stopper.check()
            _enlarge(source, target, upscaler, options, stopper.check)
    print(f"{len(targets)} written to {options.out}")
    return 0


def _found(options: argparse.Namespace) -> "Saved":
    """Read the weights, and how they are to draw: one picture at a time.

    Raises:
        Refused: no such run, one that enlarges nothing, or settings that mean nothing to it.
    """
    from lab.errors import Refused
    from scripts.assembly import enlarging, saved
    from superres.cascade_stage import CascadeConfig

    found = saved.read(options.run, options.checkpoint, options.weights)
    config = enlarging.shape(found)
    if options.prompt and not (isinstance(config, CascadeConfig) and config.hears_text):
        raise Refused(f"--prompt: {options.run} was trained without captions and hears none: leave it out")
    alone = {"chunk": 1} if isinstance(config, CascadeConfig) else {}
    given = {name: getattr(options, name) for name in ("grain", "back_projection")}
    enlarged = {name: value for name, value in given.items() if value is not None}
    return enlarging.retold(found, {**alone, **settings.asked(options)}, enlarged)


def _targets(pictures: Sequence[Path], out: Path, factor: int) -> dict[Path, Path]:
    """Name the results.

    Raises:
        Refused: a picture is not there, a result or its sheet is there already, or two would be the same.
    """
    from lab.errors import Refused

    targets = {path: out / f"{path.stem}-x{factor}.png" for path in pictures}
    for path, target in targets.items():
        if not path.is_file():
            raise Refused(f"{path}: no such image file")
        for there in (target, _sheet_of(target)):
            if there.exists():
                raise Refused(f"{there} is there already: move it away, or name another folder by --out")
        if twins := [other for other, same in targets.items() if same == target and other != path]:
            raise Refused(f"{path} and {twins[0]} would both become {target}: enlarge them into two folders")
    return targets


def _sheet_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}-sheet.png")


def _enlarge(source: Path, target: Path, upscaler: "Upscaler", options: argparse.Namespace, poll: "Poll") -> None:
    """Enlarge one picture, and show it beside its bicubic enlargement."""
    import torch
    from tqdm import tqdm

    from diffusion.pipeline import Request
    from lab.images import Layers, grid, layered, read_layers, save_png
    from lab.resampling import bicubic

    image, opacity, is_grey = read_layers(source)
    with tqdm(unit="pass", desc=source.name, leave=False, disable=None) as bar:

        def polled() -> None:
            poll()
            bar.update()

        (large,) = upscaler(image[None], [Request(options.prompt)], options.seed, polled)
    size = (large.shape[1], large.shape[2])
    if opacity is not None:
        (opacity,) = bicubic(opacity[None], size)
    sheet = torch.cat([bicubic(image[None], size), large[None]])
    save_png(_sheet_of(target), grid(sheet, ["bicubic", "the run"], columns=2))
    save_png(target, layered(Layers(large, opacity, is_grey)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="the run of a fast decoder or a cascade")
    add("pictures", type=Path, nargs="+", help="picture files of any common format")
    add("--out", type=Path, required=True, help="folder for the results")
    tiles = f"side of the tiles in pixels of the picture; 0 for none (default {settings.TILE})"
    add("--tile", type=int, default=settings.TILE, help=tiles)
    add("--prompt", default="", help="what the pictures show, for a cascade that was trained on captions")
    add("--seed", type=int, default=0, help="of what a cascade draws (default 0)")
    add(
        "--grain",
        type=float,
        help="a cascade's: deviation of the noise on the small picture, of its range from -1 to 1",
    )
    add(
        "--back-projection",
        type=int,
        metavar="N",
        help="a cascade's: bring the result back to the small picture N times",
    )
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    settings.add_flags(parser, chunk=False)
    return parser


if __name__ == "__main__":
    run(main)
