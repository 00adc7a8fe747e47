"""Make two sets of captioned emoji: emoji64, drawn by Google, and emoji256, the same things rendered by Microsoft.

    python scripts/prepare.py emoji data                     # data/emoji64 and data/emoji256, 90 MB fetched by npm
    python scripts/prepare.py emoji data --from ~/Downloads  # from tarballs that are there already

Each folder has images/ and metadata.jsonl, and appears whole; one that is there is left alone. Tarballs that are not
there are fetched by npm and kept, though nothing needs them any more; each must have the hash that it was published
with. Without npm or a network, call this where both are and bring the .tgz files:

    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 emojilib@4.0.3

The pictures are under Apache-2.0 (emoji64, Noto) and MIT (emoji256, Fluent), names and keywords under MIT.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.interface.entry import EXIT_CODES


def main(argv: Sequence[str]) -> int:
    """Make them; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="prepare.py emoji",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where both are to be, such as data")
    parser.add_argument("--from", type=Path, dest="tarballs", help="folder of the .tgz files (default: the same)")
    options = parser.parse_args(argv)
    if options.tarballs and not options.tarballs.is_dir():
        parser.error(f"--from {options.tarballs}: no such folder")
    from lab.data import emoji

    made = emoji.build(options.folder, options.tarballs or options.folder)
    for path in (options.folder / name for name in emoji.SETS):
        print(f"{path}: {'made' if path in made else 'there already'}")
    return 0
