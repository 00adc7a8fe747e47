"""Make pictures larger with a run that has learned to (stage.kind=fast).

    python scripts/upscale.py runs/emoji256_fast photo.png --out large
    python scripts/upscale.py runs/emoji256_fast a.png b.jpg --out large --tile 128    # in less memory

Writes NAME-x4.png (for a factor of 4) for each picture, and NAME-x4-sheet.png with what a bicubic filter makes of it
beside. Large pictures are made in tiles; the result is the same. Transparency is kept, enlarged by the bicubic filter;
grey pictures stay grey; pictures of 16 bits are read as such, and come out with 8. Animations are refused, and nothing
is overwritten.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from superres.fast import Enlarger


def main(argv: Sequence[str]) -> int:
    """Enlarge; see the module's text."""
    options = _parser().parse_args(argv)
    from tqdm import tqdm

    from lab.errors import Refused
    from lab.training.signals import Stopper
    from scripts import enlarging, saved

    if options.tile < 0:
        raise Refused(f"--tile {options.tile}: a side in pixels, or 0 for none")
    found = saved.read(options.run, options.checkpoint, options.weights)
    enlarger = enlarging.build(found, options.tile)
    targets = _targets(options.pictures, options.out, enlarger.factor)
    with Stopper().listening() as stopper:
        for source, target in tqdm(targets.items(), unit="picture", desc="upscale", disable=None):
            stopper.check()
            _enlarge(source, target, enlarger)
    print(f"{len(targets)} written to {options.out}")
    return 0


def _targets(pictures: Sequence[Path], out: Path, factor: int) -> dict[Path, Path]:
    """Name the results.

    Raises:
        Refused: one is there already, or two would be the same.
    """
    from lab.errors import Refused

    targets = {path: out / f"{path.stem}-x{factor}.png" for path in pictures}
    for path, target in targets.items():
        if target.exists():
            raise Refused(f"{target} is there already: move it away, or name another folder by --out")
        if twins := [other for other, same in targets.items() if same == target and other != path]:
            raise Refused(f"{path} and {twins[0]} would both become {target}: enlarge them into two folders")
    return targets


def _enlarge(source: Path, target: Path, enlarger: "Enlarger") -> None:
    """Enlarge one picture, and show it beside its bicubic enlargement."""
    import torch

    from lab.images import Layers, grid, layered, read_layers, save_png
    from lab.resampling import bicubic

    image, opacity, is_grey = read_layers(source)
    size = (enlarger.factor * image.shape[1], enlarger.factor * image.shape[2])
    (large,) = enlarger(image[None])
    if opacity is not None:
        (opacity,) = bicubic(opacity[None], size)
    sheet = torch.cat([bicubic(image[None], size), large[None]])
    save_png(target.with_name(f"{target.stem}-sheet.png"), grid(sheet, ["bicubic", "the run"], columns=2))
    save_png(target, layered(Layers(large, opacity, is_grey)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="the run of a fast decoder")
    add("pictures", type=Path, nargs="+", help="picture files of any common format")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--tile", type=int, default=256, help="side of the tiles in pixels of the picture; 0 for none (default 256)")
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    return parser


if __name__ == "__main__":
    run(main)
