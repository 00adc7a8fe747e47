"""Measure how good a trained run is, on what was held out of its data.

    python scripts/evaluate.py runs/demo                       # everything, into runs/demo/evaluation-<hash>.json
    python scripts/evaluate.py runs/demo --num 50              # quickly
    python scripts/evaluate.py runs/demo --num 500 --json out.json --guidance 2
    python scripts/evaluate.py runs/demo --kinds full --metrics prompt                     # up to four objects
    python scripts/evaluate.py runs/demo --num 200 --best-of 1,2,4,8,16 --reject 12:0.5   # what selection gains
    python scripts/evaluate.py runs/demo --num 500 --best-of 1,2,4,8 --scorer runs/scorer # selected by a trained scorer
    python scripts/evaluate.py runs/demo --num 200 --guidance 1,1.5,2,3,5,8               # quality against guidance
    python scripts/evaluate.py runs/emoji64 --num 200          # a model of your own pictures
    python scripts/evaluate.py runs/emoji64 --metrics fid,kid,clip --clip ViT-L-14-336:openai   # weights of your own
    python scripts/evaluate.py --selftest                      # does this machine compute the figures that it should?
    python scripts/evaluate.py runs/shapes64_vae               # an autoencoder: what it keeps of held-out pictures
    python scripts/evaluate.py runs/shapes64_fast              # a fast decoder: what it makes of small pictures
    python scripts/evaluate.py runs/shapes64_cascade --steps 5 # a cascade: what details it draws
    python scripts/evaluate.py runs/scorer                     # a scorer: whether it finds the text of a picture

**A diffusion model of the Shapes**: whether it does what prompts say, and how close its pictures are to the world's.
Prompts come from lists fixed by a seed, one picture each, none selected: ``pair`` (twice --num), held-out combinations,
held-out phrasings and ``single``, or those of --kinds. A picture is right when everything its prompt states is right
and nothing is added; a picture that cannot be read is wrong. Intervals are Wilson 95 % for proportions and as named for
distances. What became of each prompt is kept beside the figures in ``*.outcomes.jsonl``, and the first pictures of each
list in ``*.pictures``: from these scripts/compare.py compares runs.

What each figure says, what it takes and when to trust it stands in docs/evaluation.md. With --metrics only some are
measured, or others: those that need weights from elsewhere, which are read from a file or a cache and known by their
hash, never downloaded. Features of the data are kept by content, and made once.

With --best-of it measures instead how the share of right pairs grows with the number of candidates that the best is
selected of, over the steps that they cost, and with --reject what giving up the worst previews saves and loses, with a
plot. Selected and judged by the same verifier or scorer, that is how far selection goes, and no figure of the run. For
runs on other pictures --judge says who judges.

With several scales of --guidance each is evaluated as it would be alone, and one more file, a table and a plot show
accuracy, distance and diversity as curves.

**A diffusion model of other pictures**: how far samples for held-out captions are from held-out pictures; how often the
nearest picture carries the caption that was asked for; whether samples lie everywhere where data lies, and how many
differ; and whether they are copies of training pictures, with a sheet of the closest pairs. In pixels, and in the
features of EfficientNet-Lite0.

**An autoencoder**: PSNR, SSIM and the perceptual distance of reconstructions, beside those of two baselines with no
more numbers per picture (a thumbnail, and a linear codec fitted on training pictures); the distance of the set of
reconstructions to the originals; scale and spectrum of the latents, and the use of codes; on Shapes, what a verifier
reads from the reconstructions. Beside the figures stand two sheets: originals, reconstructions and differences, and
straight lines between latents.

**A fast decoder**: the same of what it makes of held-out pictures that were made small, beside bicubic, Lanczos and the
best linear filter; how much of the small picture is found again in the large one (consistency, colours); kernel and
Frechet distance of all that it made to the real pictures; the time that a picture takes; a sheet. **A cascade**: the
same of details drawn with the captions of the pictures, as they are and back-projected.

**A scorer**: how often a held-out picture finds its caption, and a caption its picture, first among those of 49 others;
on Shapes also among 15 near misses, each of which has one thing wrong (colours or shapes exchanged, the relation, a
size, a count, a colour, a shape). Sheets of mistakes.

The same checkpoint and settings give the same figures, and are not measured twice: the hash in the file's name is
theirs. Ctrl-C, SIGTERM and SIGUSR1 stop it soon; after them, and after a kill, the same command goes on: of a diffusion
model, finished chunks of pictures wait in a folder beside the figures, ``*.drawn``, which is removed when these are
written. Where memory runs out, all figures are measured with half the chunk, and are those of the smaller --chunk,
under its name. Several processes, one for each GPU, draw and describe the pictures of a diffusion model together, and
give the same figures (docs/cluster.md):

    torchrun --standalone --nproc-per-node 8 -- scripts/evaluate.py runs/demo --num 5000
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.interface import settings
from scripts.interface.entry import EXIT_CODES, run

METRICS = (
    "what to measure: prompt, diversity, distances, precision_recall, memorization, which need no download (default: "
    "those of them that go with the data); word_order; and fid, kid, fd_dinov2, cmmd, clip, which need weights. See "
    "docs/evaluation.md"
)


def main(argv: Sequence[str]) -> int:
    """Evaluate; see the module's text."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.selftest:
        from scripts.evaluation.selftest import selftest

        return selftest()
    if options.run is None:
        parser.error("name a run, or --selftest")
    from lab.errors import Refused
    from scripts.assembly import experiments
    from scripts.evaluation import evaluating

    if options.json and options.json.exists():
        raise Refused(f"--json {options.json} exists: name another file, or move it away")
    with experiments.together(options.run) as world:
        path, told = evaluating.evaluate(options, world)
        if world.is_first:
            print(told)
            print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, nargs="?", help="a run directory")
    add("--selftest", action="store_true", help="check the figures of fixed inputs on this machine; takes no run")
    add(
        "--num",
        type=int,
        default=500,
        help="prompts per kind (pairs and diversity get twice as many), or held-out pictures (default 500)",
    )
    add(
        "--kinds",
        metavar="NAME,NAME",
        help="prompt lists of the Shapes: single, ordered, pair, count, full, each also with _heldout_combinations or "
        "_heldout_phrasings (default: pairs and singles, and count and full where the run trains on them); "
        "distances are those of pairs, which are then drawn too",
    )
    add("--json", type=Path, help="where to write the figures (default RUN/evaluation-<hash>.json)")
    add("--checkpoint", help="a folder under RUN/ckpt, or best: that of train.keep_best (default: the newest good one)")
    add("--weights", default="ema", help="ema, raw, or what average.py made, such as ema_0.075 (default ema)")
    add(
        "--no-distances",
        action="store_true",
        help="leave out what pretrained networks measure, which needs them and the extra 'evaluate'",
    )
    add("--metrics", metavar="NAME,NAME", help=METRICS)
    add(
        "--inception",
        type=Path,
        help="file of Inception-v3's published weights, for fid and kid (default: torch's cache)",
    )
    add(
        "--inception-resize",
        choices=("tensorflow", "clean"),
        default="tensorflow",
        help="filter: that of the first FID and torch-fidelity, or clean-fid's (default tensorflow)",
    )
    add("--clip", metavar="NAME", help="a CLIP for clip and cmmd: folder, ARCHITECTURE:TAG or ARCHITECTURE:FILE")
    add("--dinov2", metavar="NAME", help="folder or repository of a DINOv2, for fd_dinov2")
    add(
        "--cache",
        type=Path,
        default=Path("data/cache/features"),
        help="keeps the features of the data, by content (default data/cache/features)",
    )
    add("--best-of", metavar="N,N", help="measure the best of so many candidates instead, as in 1,2,4,8,16")
    settings.add_selection_flags(parser)
    add(
        "--judge",
        help="who says what the selected are worth, named as for --scorer (default on Shapes: the verifier)",
    )
    settings.add_flags(parser, several=True)
    return parser


if __name__ == "__main__":
    run(main)
