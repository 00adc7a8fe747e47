"""Draw pictures from prompts with a trained run.

    python scripts/sample.py runs/demo "a red circle above a blue square"
    python scripts/sample.py runs/demo "a red circle" "a blue ring" --num 4 --seed 1 --guidance 3 --steps 20
    python scripts/sample.py runs/demo --prompts-file prompts.txt --out pictures        # one prompt per line
    python scripts/sample.py runs/demo "a red circle" --negative "a blue circle" --sampler ddpm --steps 100
    python scripts/sample.py runs/demo "a red circle" --sampler ddpm --variance optimal # measures it at the first call
    python scripts/sample.py runs/demo "a red circle" --sampler dpmpp_2m --spacing logsnr --steps 12
    python scripts/sample.py runs/coco "a long train" --size 80x48                     # a run with data.buckets
    python scripts/sample.py runs/demo "a red circle" --best-of 8 --scorer prompt_accuracy --reject 12:0.5
    python scripts/sample.py runs/demo "a red circle" --upscale runs/cascade --upscale runs/fast
    python scripts/sample.py runs/emoji64 "a red fox" --best-of 8 --scorer runs/emoji64_scorer   # any prompt
    python scripts/sample.py runs/grown "a red circle"     # a model that was grown to larger pictures draws them itself

Writes one PNG per picture, ``grid-<hash>.png`` with captions, and ``index.jsonl``. Picture j of a prompt depends on the
seed and on j, not on what else was asked for. A file's name ends in a hash of its recipe, which stands in the PNG's
metadata: the same recipe is not drawn twice, another recipe is another file. The empty prompt "" is allowed: anything.

With --best-of N pictures 0 to N - 1 of each prompt are candidates, of which the best --num are kept; all scores stand
in ``best-<hash>.json``, and what selected a picture in its recipe. With --reject the worst previews are not drawn to
their end. What the verifier selected and then judges is no evidence of quality, since that judge chose it.

Ctrl-C, SIGTERM and SIGUSR1 stop within a step of the sampler and keep the finished pictures; after them, and after a
kill or a crash, the same command draws only what is missing. Where memory runs out, the rest is drawn with half the
chunk. The chunk is a part of the recipe, so these are the pictures that the smaller --chunk gives, under its names; the
same command tries its own chunk again first. One job at a time draws into a folder. Several processes, one for each
GPU, share the chunks out and draw the same pictures (docs/cluster.md):

    torchrun --standalone --nproc-per-node 8 -- scripts/sample.py runs/demo --prompts-file prompts.txt --num 16
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface import settings
from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from lab.world import World


def main(argv: Sequence[str]) -> int:
    """Draw; see the module's text."""
    options = _parser().parse_args(argv)
    from lab.errors import Refused
    from scripts.assembly import experiments
    from scripts.interface import gallery

    if options.reject and not options.best_of:
        raise Refused("--reject gives up candidates of --best-of N: name N, or leave it out")
    prompts = gallery.read_prompts(options.prompts, options.prompts_file)
    with experiments.together(options.run) as world:
        if options.best_of and world.size > 1:
            raise Refused("--best-of is drawn by one process: leave torchrun out")
        _draw(options, prompts, world)
    return 0


def _draw(options: argparse.Namespace, prompts: Sequence[str], world: "World") -> None:
    from diffusion.pipeline import Request
    from lab.errors import Refused
    from lab.training.signals import Stopper
    from scripts.assembly import drawing, upscaling
    from scripts.interface import gallery
    from scripts.selection import judges, selecting

    trained = drawing.trained(options.run, options.checkpoint, options.weights, world)
    sampling = drawing.sampling(trained.experiment, settings.asked(options))
    trained = drawing.with_variance(trained, sampling)
    if options.size:
        trained = drawing.shaped(trained, options.size)
    trained = upscaling.followed_by(trained, options.upscale)
    out = options.out or options.run / "samples"
    columns = options.num if options.num > 1 else None
    if options.best_of:
        gallery.check(options.num, options.negative, sampling)
        rounds = tuple(map(selecting.read_round, options.reject))
        plan = selecting.Plan(options.best_of, judges.read(options.scorer), rounds)
        if options.size and options.size[0] != options.size[1] and plan.panel.is_verifier:
            raise Refused("the verifier of the Shapes reads squares: leave --size out, or name another --scorer")
        requests = [Request(prompt, 0, options.negative) for prompt in prompts]
        with Stopper().listening() as stopper, gallery.alone(out):
            selector = selecting.Selector(trained, options.seed, sampling, plan, stopper.check)
            pictures, told = selecting.sample(selector, requests, options.num, out)
            print(f"{told}; {gallery.show(pictures, out, columns)}")
            for warning in plan.panel.warnings(prompts):
                print(warning, file=sys.stderr)
        return
    pictures = gallery.wanted(trained, prompts, options.num, options.seed, options.negative, sampling)
    with Stopper().listening() as stopper, gallery.alone(out, world):
        pictures, drawn = gallery.draw(trained, pictures, options.seed, sampling, out, stopper.check)
        if world.is_first:
            print(f"{drawn} drawn, {len(pictures) - drawn} there already; {gallery.show(pictures, out, columns)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory")
    add("prompts", nargs="*", help="what to draw")
    add("--prompts-file", type=Path, help="a text file with one prompt per line; blank lines are skipped")
    add("--num", type=int, default=1, help="pictures per prompt (default 1)")
    add("--seed", type=int, default=0, help="of the noise (default 0)")
    add(
        "--size",
        type=settings.shape,
        metavar="WxH",
        help="width and height of the pictures in pixels, as in 96x64 (default: the squares that the run was trained "
        "on); about the area of those, and a shape that training has seen (data.buckets)",
    )
    add("--negative", default="", help="what to move away from; needs guidance above 1")
    add("--out", type=Path, help="folder for the pictures (default RUN/samples)")
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    add("--best-of", type=int, default=0, metavar="N", help="draw N candidates of each prompt and keep the best --num")
    settings.add_selection_flags(parser)
    add(
        "--upscale",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="let the pictures pass the fast decoder or cascade that this run has trained; may be given again, for the "
        "next one",
    )
    settings.add_flags(parser)
    return parser


if __name__ == "__main__":
    run(main)
