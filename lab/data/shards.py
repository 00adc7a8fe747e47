"""Tar files of pictures and captions, as WebDataset writes them, read in any order without being unpacked.

    000.jpg 000.txt 001.jpg 001.json ...    members of one sample stand together and share a name up to the first dot

A catalogue of each tar, with the place, size and SHA-256 of every member, is made once and kept in the cache. When a
tar is not the same file any more, it is compared: one that was cut short or damaged is named with the number of samples
that are lost, and each image is compared once more when it is read. Nothing is ever written by the names of members,
and only pictures, texts and JSON are opened.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lab.data.caption import Captions, in_places, of_fields, read
from lab.data.collection import Collection, Entry, Record, files, stamps
from lab.data.folder import SUFFIXES
from lab.data.index import MAX_BYTES
from lab.data.source import BadSample
from lab.errors import BadData, Refused
from lab.storage import write_whole

PICKLED = {"pkl", "pickle", "pyd", "pt", "pth"}


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, where its bytes are, and their SHA-256 in hexadecimal digits."""

    name: str
    offset: int
    size: int
    sha256: str

    @property
    def sample(self) -> str:
        """The name up to the first dot after the folder."""
        path = PurePosixPath(self.name)
        return str(path.parent / path.name.partition(".")[0])

    @property
    def suffix(self) -> str:
        """The rest of the name, in lower case."""
        return PurePosixPath(self.name).name.partition(".")[2].lower()


class Shards(Collection):
    """The ``.tar`` files of the folder ``path``; its attributes are those of ``Collection``."""

    kind: Literal["shards"] = "shards"

    def state(self) -> Iterator[str]:
        return stamps(self._tars())

    def entries(self) -> Iterator[Entry]:
        tars = self._tars()
        if problems := [problem for name in tars if (problem := self._problem(name))]:
            raise BadData("; ".join(problems))
        for name in tars:
            members = [Member(*member) for member in self._known(name)["members"]]
            with (self.root / name).open("rb", buffering=0) as tar:
                for sample, own in groupby(members, lambda member: member.sample):
                    yield self._sample(
                        f"{name}/{sample}", name, {member.suffix: member for member in own}, tar.fileno()
                    )

    def _tars(self) -> dict[str, os.stat_result]:
        found = {name: state for name, state in files(self.root).items() if name.endswith(".tar")}
        if not found:
            raise Refused(
                f"data.path={self.path}: holds no .tar file (packed ones, such as .tar.gz, are to be unpacked)"
            )
        return found

    def _sample(self, sample: str, file: str, members: Mapping[str, Member], tar: int) -> Entry:
        """The entry of one sample; ``tar`` is open."""
        texts = {name: _bytes(tar, members[name]) for name in ("txt", "json") if name in members}
        picture = next((member for suffix, member in members.items() if f".{suffix}" in SUFFIXES), None)
        if picture is None:
            record = Record(sample, fault=BadSample("no image", f"has {', '.join(members)}"))
        else:
            record = Record(sample, file, picture.offset, picture.size, bytes.fromhex(picture.sha256))
        return self.entry(record, lambda: self._captions(texts), _fields(texts.get("json", b"{}")))

    def _captions(self, texts: Mapping[str, bytes]) -> Captions:
        found: list[tuple[str, str]] = []
        if "txt" in texts:
            lines = texts["txt"].decode("utf-8", "surrogateescape").strip().split("\n")
            found += in_places((caption for line in lines for caption in read(line, "txt")), self.captions)
        if "json" in texts:
            found += of_fields(_fields(texts["json"]), self.captions)
        return list(dict.fromkeys(found))

    def _catalogue(self, name: str) -> Path:
        digest = hashlib.blake2b(os.fsencode((self.root / name).resolve()), digest_size=16).hexdigest()
        return self.cache_folder / "shards" / f"{digest}.json"

    def _known(self, name: str) -> dict[str, Any]:
        path = self._catalogue(name)
        try:
            known: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError:
            raise BadData(f"{path}: is spoilt; delete it, and {name} is listed again") from None
        return known

    def _problem(self, name: str) -> str:
        """Say what is wrong with a tar that was listed before; list one that was not."""
        path, catalogue = self.root / name, self._catalogue(name)
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        if not catalogue.exists():
            known: dict[str, Any] = {"members": [[m.name, m.offset, m.size, m.sha256] for m in scan(path)]}
        elif (known := self._known(name))["stamp"] == stamp:
            return ""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if known.get("sha256", digest) == digest:
            write_whole(catalogue, json.dumps({**known, "stamp": stamp, "sha256": digest}).encode())
            return ""
        lost, num = _lost(path, [Member(*member) for member in known["members"]])
        return (
            f"{path}: is cut short, damaged or another than was listed: {lost} of its {num} samples are lost; "
            f"restore it, or, if it was changed on purpose, delete {catalogue}"
        )


def scan(path: Path) -> list[Member]:
    """List the files in a tar.

    Raises:
        Refused: a member whose name leaves the folder, that is a link, a device, sparse, absurdly large or pickled.
        BadData: the tar is cut short or damaged.
    """
    members: list[Member] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for info in tar:
                if info.isdir():
                    continue
                _refuse(path, info)
                file.seek(info.offset_data)
                digest = hashlib.sha256(file.read(info.size)).hexdigest()
                members.append(Member(info.name, info.offset_data, info.size, digest))
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile gives up in silence
                raise tarfile.ReadError("no mark of the end")
    except tarfile.TarError as error:
        num = len({member.sample for member in members})
        raise BadData(
            f"{path}: is cut short or damaged behind {num} samples, at byte {end:,} ({error}); "
            "restore it, or move it away"
        ) from None
    return members


def _refuse(path: Path, info: tarfile.TarInfo) -> None:
    name = PurePosixPath(info.name)
    problem = ""
    if name.is_absolute() or ".." in name.parts:
        problem = "its name leaves the folder"
    elif not info.isreg() or info.issparse():
        problem = "it is a link, a device or sparse"
    elif info.size > MAX_BYTES:
        problem = f"it has {info.size:,} bytes, more than {MAX_BYTES:,}"
    elif name.suffix.lower()[1:] in PICKLED:
        problem = "pickled data can run code when it is read; write pictures, txt and json instead"
    if problem:
        raise Refused(f"{path}: member {info.name!r:.200} is refused: {problem}")


def _bytes(tar: int, member: Member) -> bytes:
    return os.pread(tar, member.size, member.offset)


def _lost(path: Path, members: list[Member]) -> tuple[int, int]:
    """How many samples have other bytes than were listed, and how many there are."""
    samples: dict[str, bool] = {}
    with path.open("rb", buffering=0) as tar:
        for member in members:
            is_whole = hashlib.sha256(_bytes(tar.fileno(), member)).hexdigest() == member.sha256
            samples[member.sample] = samples.get(member.sample, True) and is_whole
    return list(samples.values()).count(False), len(samples)


def _fields(text: bytes) -> Mapping[str, object]:
    """The fields of a JSON member; none where it holds something else."""
    try:
        fields = json.loads(text.decode("utf-8", "surrogateescape"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
