"""Get data ready before a run: find what is wrong with it, and compute ahead what training would wait for.

    python scripts/prepare.py configs/emoji64.yaml                      # index, doctor and text cache of a preset
    python scripts/prepare.py configs/emoji64.yaml data.path=/my/art    # any setting can be given, as to train.py
    python scripts/prepare.py doctor configs/emoji64.yaml               # only look, and write the report
    python scripts/prepare.py doctor configs/shapes.yaml --num 500      # a world without an end: its first samples

The report goes to --out (default data/doctor/<name of the preset>): report.md to read, findings.jsonl with one line per
finding, sheet.png with the pictures of the findings. Nothing of the data is changed: broken samples are left out by
every run, which lists them in its quarantine.jsonl; the others are yours to judge.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.entry import EXIT_CODES, run


def main(argv: Sequence[str]) -> int:
    """Prepare; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[doctor] PRESET key=value",
        help="what to do (everything, or only the doctor's part), a preset such as configs/emoji64.yaml, settings",
    )
    parser.add_argument("--out", type=Path, help="folder of the doctor's report (default data/doctor/<name>)")
    parser.add_argument("--num", type=int, default=1000, help="samples of each side of a world without an end")
    options = parser.parse_intermixed_args(argv)
    only_look = options.words[0] == "doctor"
    words = options.words[only_look:]
    presets = [word for word in words if "=" not in word]
    if len(presets) != 1:
        parser.error("name one preset, such as configs/emoji64.yaml")
    from scripts import assemble, checkup

    experiment = assemble.load(Path(presets[0]), [word for word in words if "=" in word])
    encoder = checkup.encoder(experiment)
    out, parts = options.out or Path("data/doctor") / experiment.name, checkup.parts_of(experiment.data)
    for name, data in parts.items():
        report = checkup.examine(data, options.num, encoder)
        print(checkup.write(report, data, out / name if len(parts) > 1 else out))
    if not only_look:
        print(checkup.fill(experiment.data, encoder))
    return 0


if __name__ == "__main__":
    run(main)
