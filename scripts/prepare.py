"""Get data ready before a run: find what is wrong with it, and compute ahead what training would wait for.

    python scripts/prepare.py emoji data                                # two sets of captioned emoji, from npm
    python scripts/prepare.py configs/emoji64.yaml                      # index, doctor and caches of a preset
    python scripts/prepare.py configs/shapes64.yaml "data={kind: folder, path: /my/art, size: 64}"     # your own art
    python scripts/prepare.py doctor configs/emoji64.yaml               # only look, and write the report
    python scripts/prepare.py doctor configs/shapes.yaml --num 500      # a world without an end: its first samples
    python scripts/prepare.py standardise runs/vae                      # the scale of an autoencoder's latents

The report goes to --out (default data/doctor/<name of the preset>): report.md to read, findings.jsonl with one line per
finding, sheet.png with the pictures of the findings. Nothing of the data is changed: broken samples are left out by
every run, which lists them in its quarantine.jsonl; the others are yours to judge.

A latent run (stage.codec.kind=autoencoder) measures the scale of the latents itself where it is not in the
autoencoder's run yet. With stage.codec.cache=FOLDER each image is encoded once, ahead of the run by this script or
while it trains; pictures that are cropped or flipped at random are other images each time, so leave it out there.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.interface.entry import EXIT_CODES, run
from scripts.preparation import emoji


def main(argv: Sequence[str]) -> int:
    """Prepare; see the module's text."""
    if argv and argv[0] == "emoji":
        return emoji.main(argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[doctor] PRESET key=value | standardise RUN",
        help="what to do (everything, or only the doctor's part), a preset such as configs/emoji64.yaml, settings",
    )
    parser.add_argument("--out", type=Path, help="folder of the doctor's report (default data/doctor/<name>)")
    parser.add_argument("--num", type=int, default=1000, help="samples of each side of a world without an end")
    options = parser.parse_intermixed_args(argv)
    what = options.words[0] if options.words[0] in ("doctor", "standardise") else "everything"
    words = options.words[what != "everything" :]
    presets = [word for word in words if "=" not in word]
    if len(presets) != 1:
        parser.error("name one preset, such as configs/emoji64.yaml, or after standardise one run")
    if what == "standardise":
        return _standardise(Path(presets[0]))
    from diffusion.stage import DiffusionConfig
    from lab import runtime as runtimes
    from scripts.assembly import assemble, experiments, latent
    from scripts.preparation import checkup
    from superres.stage import GrownConfig

    experiment = experiments.load(Path(presets[0]), [word for word in words if "=" in word])
    if isinstance(experiment.stage, GrownConfig):  # hears through its source's encoder
        experiment = assemble.complete(experiment)
    encoder = checkup.encoder(experiment)
    out, parts = options.out or Path("data/doctor") / experiment.name, checkup.parts_of(experiment.data)
    for name, data in parts.items():
        report = checkup.examine(data, options.num, encoder)
        print(checkup.write(report, data, out / name if len(parts) > 1 else out))
    if what == "everything":
        print(checkup.fill(experiment.data, encoder))
        if isinstance(experiment.stage, DiffusionConfig) and experiment.stage.codec.kind != "pixels":
            completed = assemble.complete(experiments.diffusion(experiment, Path(presets[0])))
            runtime = runtimes.start(completed.runtime)
            print(latent.fill(completed, latent.codec(completed.stage.codec, runtime), runtime))
    return 0


def _standardise(path: Path) -> int:
    """Measure the scale of an autoencoder's latents, keep it in the run and show it."""
    from lab import runtime as runtimes
    from scripts.assembly import latent, saved

    found = saved.read(path)
    scale = latent.statistics(found, runtimes.start(found.experiment.runtime))
    print(f"{path}: latents of {scale.num:,} images")
    for channel, (mean, std) in enumerate(zip(scale.mean, scale.std, strict=True)):
        print(f"channel {channel}: mean {mean:+.4f}, standard deviation {std:.4f}")
    return 0


if __name__ == "__main__":
    run(main)
