"""Two sets of captioned emoji, made from packages of npm: the same for everybody, to the byte.

    emoji64/    1,412 pictures of 64x64 by Google (Noto), and metadata.jsonl
    emoji256/   1,376 pictures of 256x256 by Microsoft (Fluent 3D), and metadata.jsonl

Each has a short caption, the emoji's name, and a long one, the name and up to eight keywords. Flags, symbols and parts
of emoji are left out, and so are tones of skin. A tarball is known by its hash; its members are read as bytes, and
nothing is written by a name that came from elsewhere, but for hexadecimal digits.
"""

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from lab.errors import Refused
from lab.storage import whole

GOOGLE, FLUENT, KEYWORDS = "emoji-datasource-google@16.0.0", "@lobehub/fluent-emoji-3d@1.1.0", "emojilib@4.0.3"
SHA256 = {
    GOOGLE: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    FLUENT: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    KEYWORDS: "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
}
MEMBERS = {  # what is read, and what it is called then
    GOOGLE: re.compile(r"package/(?:img/google/64/)?([0-9a-f-]+\.png|emoji\.json)"),
    FLUENT: re.compile(r"package/assets/([0-9a-f-]+\.webp)"),
    KEYWORDS: re.compile(r"package/dist/(emoji-en-US\.json)"),
}
SETS = {"emoji64": GOOGLE, "emoji256": FLUENT}
LEFT_OUT = {"Flags", "Symbols", "Component"}
NUM_KEYWORDS = 8
EMOJI_STYLE = 0xFE0F  # a code point that some names have and others lack


def build(folder: Path, tarballs: Path) -> list[Path]:
    """Make the sets that are not there; each appears whole.

    Args:
        folder: of the sets.
        tarballs: folder of the packages as ``npm pack`` writes them; those that are missing are fetched into it.

    Returns:
        The folders of the sets that were made.

    Raises:
        Refused: npm is missing or fails, or a tarball is another one.
        StorageFailed: the disk is full or refuses.
    """
    missing = [folder / name for name in SETS if not (folder / name).exists()]
    if missing:
        fetch([spec for spec in SHA256 if not (tarballs / file_of(spec)).exists()], tarballs)
        google = members(tarballs, GOOGLE)
        catalogue = json.loads(google.pop("emoji.json"))
        keywords = json.loads(members(tarballs, KEYWORDS)["emoji-en-US.json"])
        for path in missing:
            pictures = google if path.name == "emoji64" else members(tarballs, FLUENT)
            _write(path, list(rows(catalogue, keywords, pictures)), pictures)
    return missing


def rows(catalogue: Iterable[Any], keywords: Mapping[str, list[str]], files: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Give the lines of metadata, in the order of the catalogue.

    Args:
        catalogue: the emoji.
        keywords: of each emoji, by itself as text.
        files: of pictures, called by the code points of the emoji; of several pictures of one the first counts.
    """
    pictured = {_spelt(PurePosixPath(file).stem): file for file in sorted(files, reverse=True)}
    for emoji in catalogue:
        text = _spelt(emoji["unified"])
        if text in pictured and emoji["category"] not in LEFT_OUT:
            name = emoji["name"].lower()
            words = keywords.get(_spelt(emoji["unified"], whole=True)) or keywords.get(text, [])
            words = [word for each in words if (word := each.replace("_", " ")) != name][:NUM_KEYWORDS]
            yield {
                "file_name": f"images/{pictured[text]}",
                "captions": [name, f"{name}: {', '.join(words)}"] if words else [name],
                "category": emoji["category"],
                "subcategory": emoji["subcategory"],
            }


def members(tarballs: Path, spec: str) -> dict[str, bytes]:
    """Read what is needed of a package.

    Raises:
        Refused: the tarball is not the one that was published.
    """
    path = tarballs / file_of(spec)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256[spec]:
            raise Refused(f"{path}: is not {spec} as it was published, or not all of it: delete it and call again")
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r|gz") as tar:
        for info in tar:
            match = MEMBERS[spec].fullmatch(info.name)
            if match and info.isreg() and (content := tar.extractfile(info)):
                found[match[1]] = content.read()
    return found


def fetch(specs: Iterable[str], folder: Path) -> None:
    """Let npm fetch packages into a folder; each appears whole.

    Raises:
        Refused: npm is missing or fails.
        StorageFailed: the disk is full or refuses.
    """
    remedy = f"call it where there is a network, npm pack {' '.join(SHA256)}, and put the .tgz files into {folder}"
    for spec in tqdm(list(specs), desc="npm pack", unit="package", disable=None):
        with whole(folder / file_of(spec)) as beside, tempfile.TemporaryDirectory(dir=folder, prefix=".npm.") as inside:
            command = ["npm", "pack", "--ignore-scripts", "--pack-destination", inside, spec]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise Refused(f"npm, which fetches {spec}, is not installed: install Node.js, or {remedy}") from None
            if done.returncode:
                raise Refused(f"npm pack {spec} failed ({' '.join(done.stderr.split())[:300]}): {remedy}")
            (Path(inside) / file_of(spec)).replace(beside)


def file_of(spec: str) -> str:
    """Give the name that npm gives the tarball of a package."""
    return spec.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"


def _spelt(code: str, *, whole: bool = False) -> str:
    """The text of code points in hexadecimal digits; without those that only ask for the style, if not ``whole``."""
    points = [int(point, 16) for point in code.split("-")]
    return "".join(chr(point) for point in points if whole or point != EMOJI_STYLE)


def _write(path: Path, lines: list[dict[str, Any]], pictures: Mapping[str, bytes]) -> None:
    with whole(path) as beside:
        (beside / "images").mkdir(parents=True)
        for line in tqdm(lines, desc=str(path), unit="picture", disable=None):
            (beside / line["file_name"]).write_bytes(pictures[PurePosixPath(line["file_name"]).name])
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        (beside / "metadata.jsonl").write_text(text, encoding="utf-8")
