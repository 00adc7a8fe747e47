"""A folder of pictures: each with a text file beside it, or all described in one file of metadata.

    photo.jpg photo.txt     every line of the text file is a caption; an empty file is an empty caption
    metadata.jsonl          one JSON object a line: "file_name", and "caption", "captions" (a list) or both
    metadata.csv            the same as a table with these names in its first line

A file of metadata may have other fields: kinds of captions, if ``captions.kinds`` names them, or groups of the split.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from lab.data.caption import Captions, in_places, of_fields, read
from lab.data.collection import Collection, Entry, Record, files, stamps
from lab.data.source import BadSample
from lab.errors import BadData

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
METADATA = ("metadata.jsonl", "metadata.csv")


class Folder(Collection):
    """A folder of pictures with captions; its attributes are those of ``Collection``."""

    kind: Literal["folder"] = "folder"

    def state(self) -> Iterator[str]:
        return stamps(files(self.root))

    def entries(self) -> Iterator[Entry]:
        found = files(self.root)
        for name in METADATA:
            if name in found:
                return self._of_rows(self.root / name, found)
        return self._of_sidecars(found)

    def _of_rows(self, path: Path, found: Mapping[str, os.stat_result]) -> Iterator[Entry]:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _csv_lines(path)
        for number, fields in rows:
            name = fields.get("file_name")
            if not isinstance(name, str):
                broken = BadSample("broken line of metadata", str(fields.get("problem", "it has no file_name")))
                yield self.entry(Record(f"{path.name}:{number}", fault=broken), tuple)
                continue
            yield self.entry(pictured(name, found), partial(of_fields, fields, self.captions), fields)

    def _of_sidecars(self, found: Mapping[str, os.stat_result]) -> Iterator[Entry]:
        for name in found:
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                beside = str(PurePosixPath(name).with_suffix(".txt"))
                text = self.root / beside if beside in found else None
                yield self.entry(pictured(name, found), partial(self._lines, text))

    def _lines(self, path: Path | None) -> Captions:
        """The captions in a text file."""
        if path is None:
            raise BadSample("no caption", "there is no text file beside it")
        text = path.read_bytes().decode("utf-8", "surrogateescape").strip()
        return in_places((caption for line in text.split("\n") for caption in read(line, path.name)), self.captions)


def pictured(name: str, found: Mapping[str, os.stat_result]) -> Record:
    """Give the record of a picture file, without captions.

    Args:
        name: of the file, as some metadata says.
        found: the files of the folder.
    """
    normal = name if name in found else os.path.normpath(name)
    if normal in found:
        return Record(name, normal, size=found[normal].st_size)
    why = "leaves the folder" if os.path.isabs(normal) or normal.startswith("..") else "is not in the folder"
    return Record(name, fault=BadSample("no such file", why))


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Numbered lines; where one is broken, its "problem"."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                fields = {"problem": str(error)}
            yield number, fields if isinstance(fields, dict) else {"problem": "it is no JSON object"}


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        table = csv.DictReader(lines)
        try:
            if "file_name" not in (table.fieldnames or []):
                raise BadData(f"{path}: its first line names no column file_name")
            for fields in table:
                yield table.line_num, fields
        except csv.Error as error:
            raise BadData(f"{path}: line {table.line_num}: {error}") from None
