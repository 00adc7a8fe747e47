"""The idx files of MNIST and its kin: pictures in one, numbers of classes in another, gzipped or not.

The captions are the names of the classes, which the files do not hold, in the templates of ``captions``.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pydantic import Field

from lab.data.collection import Collection, Entry, Record, class_caption, files, stamps
from lab.data.split import SplitConfig
from lab.errors import BadData, Refused

PICTURES, LABELS = 0x0803, 0x0801  # bytes in three dimensions, and in one


class Idx(Collection):
    """Idx files in the folder ``path``; what is not said here is of ``Collection``.

    Attributes:
        images, labels: names of the two files.
        classes: names of the classes 0, 1, ...
    """

    kind: Literal["idx"] = "idx"
    images: str = "train-images-idx3-ubyte.gz"
    labels: str = "train-labels-idx1-ubyte.gz"
    classes: tuple[str, ...] = Field(min_length=1)
    split: SplitConfig = SplitConfig(group="id")

    def state(self) -> Iterator[str]:
        found = files(self.root)
        for name in (self.images, self.labels):
            if name not in found:
                raise Refused(
                    f"{self.root / name}: no such file; set data.images and data.labels to those of the folder"
                )
        yield repr(self.classes)
        yield from stamps({name: found[name] for name in (self.images, self.labels)})

    def entries(self) -> Iterator[Entry]:
        with _opened(self.root / self.images) as pictures, _opened(self.root / self.labels) as labels:
            num, height, width = _header(pictures, PICTURES, self.images)
            (num_labels,) = _header(labels, LABELS, self.labels)
            if num_labels != num:
                raise BadData(f"{self.path}: {num} pictures in {self.images}, but {num_labels} labels in {self.labels}")
            head = b"P5 %d %d 255\n" % (width, height)  # the least of picture formats: grey bytes as they are
            for k in range(num):
                pixels, label = _read(pictures, width * height), _read(labels, 1)
                if len(pixels) < width * height or not label:
                    raise BadData(f"{self.path}: cut short after {k} of {num} samples: {num - k} are lost")
                record = Record(f"{self.images.partition('.')[0]}-{k}")
                yield self.entry(record, partial(class_caption, self.classes, label[0]), data=head + pixels)


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb")


def _header(file: BinaryIO, magic: int, name: str) -> tuple[int, ...]:
    """The sizes in the header."""
    dimensions = magic & 0xFF
    head = _read(file, 4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or struct.unpack(">I", head[:4]) != (magic,):
        raise BadData(f"{name}: is no idx file of bytes in {dimensions} dimensions")
    return struct.unpack(f">{dimensions}I", head[4:])


def _read(file: BinaryIO, num: int) -> bytes:
    """So many bytes, or fewer where the file is cut short or broken."""
    try:
        return file.read(num)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""
