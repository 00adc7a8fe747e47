"""Measure how good a trained run is, on what was held out of its data.

    python scripts/evaluate.py runs/demo                       # everything, into runs/demo/evaluation-<hash>.json
    python scripts/evaluate.py runs/demo --num 50              # quickly
    python scripts/evaluate.py runs/demo --num 500 --json out.json --guidance 2
    python scripts/evaluate.py runs/demo --num 200 --best-of 1,2,4,8,16 --reject 12:0.5   # what selection gains
    python scripts/evaluate.py runs/emoji64 --num 200          # a model of your own pictures
    python scripts/evaluate.py runs/shapes64_vae               # an autoencoder: what it keeps of held-out pictures
    python scripts/evaluate.py runs/shapes64_fast              # a fast decoder: what it makes of small pictures
    python scripts/evaluate.py runs/shapes64_cascade --steps 5 # a cascade: what details it draws

**A diffusion model of the Shapes**: whether it does what prompts say, and how close its pictures are to the world's.
Prompts come from lists fixed by a seed, one picture each, none selected: ``pair`` (twice --num), held-out combinations,
held-out phrasings and ``single``. A picture is right when everything its prompt states is right and nothing is added; a
picture that cannot be read is wrong. Intervals are Wilson 95 % for proportions and as named for distances. What became
of each prompt is kept beside the figures in ``*.outcomes.jsonl``, and the first pictures of each list in
``*.pictures``: from these scripts/compare.py compares runs.

With --best-of it measures instead how the share of right pairs grows with the number of candidates that the best is
selected of, and with --reject what giving up the worst previews saves and loses. Selected and judged by the same
verifier, that is how far selection goes, and no figure of the run.

**A diffusion model of other pictures**: how far samples for held-out captions are from held-out pictures; how often the
nearest picture carries the caption that was asked for; and whether samples are copies of training pictures, with a
sheet of the closest pairs. In pixels, and in the features of EfficientNet-Lite0.

**An autoencoder**: PSNR, SSIM and the perceptual distance of reconstructions, beside those of two baselines with no
more numbers per picture (a thumbnail, and a linear codec fitted on training pictures); the distance of the set of
reconstructions to the originals; scale and spectrum of the latents, and the use of codes; on Shapes, what a verifier
reads from the reconstructions. Beside the figures stand two sheets: originals, reconstructions and differences, and
straight lines between latents.

**A fast decoder**: the same of what it makes of held-out pictures that were made small, beside bicubic, Lanczos and the
best linear filter; how much of the small picture is found again in the large one (consistency, colours); kernel and
Frechet distance of all that it made to the real pictures; the time that a picture takes; a sheet. **A cascade**: the
same of details drawn with the captions of the pictures, as they are and back-projected.

The same checkpoint and settings give the same figures, and are not measured twice: the hash in the file's name is
theirs. Ctrl-C, SIGTERM and SIGUSR1 stop it soon; after them, and after a kill, the same command goes on: of a diffusion
model, finished chunks of pictures wait in a folder beside the figures, ``*.drawn``, which is removed when these are
written. Where memory runs out, all figures are measured with half the chunk, and are those of the smaller --chunk,
under its name.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts import settings
from scripts.entry import EXIT_CODES, run


def main(argv: Sequence[str]) -> int:
    """Evaluate; see the module's text."""
    options = _parser().parse_args(argv)
    from lab.errors import Refused
    from scripts import evaluating

    if options.json and options.json.exists():
        raise Refused(f"--json {options.json} exists: name another file, or move it away")
    path, told = evaluating.evaluate(options)
    print(told)
    print(path)
    return 0


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
    add("--best-of", metavar="N,N", help="measure the best of so many candidates instead, as in 1,2,4,8,16")
    settings.add_selection_flags(parser)
    settings.add_flags(parser)
    return parser


if __name__ == "__main__":
    run(main)
