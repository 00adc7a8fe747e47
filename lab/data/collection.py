"""What a finite data set must say of itself: its records, once, in an order that only the data decides.

A collection is a small frozen configuration that lists what it holds. The list is kept in an index on the disk
(``lab.data.index``), from which ``lab.data.finite`` makes the source that the loader asks. Where an image's bytes can
be read from a file at an offset, a record says so; otherwise its entry brings the bytes, which are kept beside the
index.
"""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lab.config import Config
from lab.data.buckets import BucketsConfig
from lab.data.caption import CaptionConfig, Captions
from lab.data.pictures import PictureConfig
from lab.data.source import CAPTION, BadSample
from lab.data.split import SplitConfig, place, plain
from lab.errors import Refused
from lab.images import Shape

PathText = Annotated[str, Field(min_length=1)]
NO_FIELDS: Mapping[str, object] = {}


@dataclass(frozen=True)
class Record:
    """One sample of a finite data set, without its image.

    Attributes:
        id: names it within the data set.
        file: that holds the image's bytes, relative to the collection's ``root``; "" for the index's own file.
        offset, size: of the bytes in that file.
        sha256: of the bytes; empty where it is not known.
        captions: of the image, each with its kind.
        fault: why it cannot be used, as known when it was listed; ``None`` where nothing speaks against it.
    """

    id: str
    file: str = ""
    offset: int = 0
    size: int = 0
    sha256: bytes = b""
    captions: Captions = ()
    fault: BadSample | None = None


@dataclass(frozen=True)
class Entry:
    """A record when it is listed.

    Attributes:
        record: what is to be kept.
        place: of its group in [0, 1), which says whether it is held out.
        data: the image's bytes, where no file holds them as they are.
    """

    record: Record
    place: float
    data: bytes | None = None


class PictureSet(Config):
    """Base of the data sets of picture files, near or far.

    Attributes:
        path: where it is.
        size: side of the square images in pixels.
        buckets: other shapes of about that area, in which training sees pictures of other ratios; ``None`` for squares
            alone. Figures and previews are of squares in any case.
        picture: how pictures become such images.
        captions: which caption is spoken.
        max_bad: share of bad samples above which a run ends.
        remedy: how the data is to be had, which is told where it is missing.
        cache: folder of the index, which takes about 100 bytes per sample, and as many as the images where they have to
            be unpacked; by default ~/.cache/wordbrush, or the folder named by WORDBRUSH_CACHE.
    """

    path: PathText
    size: int = Field(64, ge=8, le=1024)
    buckets: BucketsConfig | None = None
    picture: PictureConfig = PictureConfig()
    captions: CaptionConfig = CaptionConfig()
    max_bad: float = Field(0.01, ge=0, le=1)
    remedy: str = ""
    cache: str = ""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.buckets and self.size % self.buckets.step:
            raise ValueError(f"buckets.step={self.buckets.step} does not divide size={self.size}: change one of them")
        return self

    @property
    def square(self) -> Shape:
        """The shape of the square images."""
        return self.size, self.size

    @property
    def shapes(self) -> list[Shape]:
        """The shapes that images may have, from the highest to the widest."""
        return self.buckets.shapes(self.size) if self.buckets else [self.square]

    @property
    def cache_folder(self) -> Path:
        """Where the index is kept."""
        return Path(self.cache or os.environ.get("WORDBRUSH_CACHE") or Path.home() / ".cache" / "wordbrush")


class Collection(PictureSet):
    """Base of the data sets that are on this machine.

    Attributes:
        path, size, picture, captions, max_bad, cache: as of ``PictureSet``.
        split: what is held out.
    """

    split: SplitConfig = SplitConfig()

    @property
    def root(self) -> Path:
        """What the files of the records are relative to."""
        return Path(self.path)

    @abstractmethod
    def state(self) -> Iterator[str]:
        """Give texts that differ when what is to be listed does; cheap, for it is asked at each start.

        Raises:
            Refused: there is no such data.
        """

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """List every sample, also those that cannot be used.

        Raises:
            Refused: the data is not what it is said to be, or not to be trusted.
            BadData: the list itself is broken.
        """

    def entry(
        self,
        record: Record,
        captions: Callable[[], Captions],
        fields: Mapping[str, object] = NO_FIELDS,
        data: bytes | None = None,
    ) -> Entry:
        """Complete a record.

        Args:
            record: without captions.
            captions: gives them; a record is a bad one if there are none, or if this raises ``BadSample``.
            fields: of the metadata, by one of which samples may be grouped.
            data: as of ``Entry``.

        Raises:
            Refused: samples are to be grouped by a field that this one does not have.
        """
        found: Captions = ()
        fault = record.fault
        try:
            found = captions()
            if not found:
                raise BadSample("no caption")
        except BadSample as bad:
            fault = fault or bad
        # Not dataclasses.replace, which takes a sixth of the time of a listing.
        record = Record(record.id, record.file, record.offset, record.size, record.sha256, found, fault)
        return Entry(record, place(self._group(record, fields)), data)

    def _group(self, record: Record, fields: Mapping[str, object]) -> str:
        name = self.split.group
        if name == "id" or (name == "caption" and not record.captions):
            return record.id
        if name == "caption":
            return plain(record.captions[0][1])
        if name not in fields:
            raise Refused(f"data.split.group={name}: {record.id} has no such field; take caption, id or another field")
        return str(fields[name])


def files(root: Path, setting: str = "data.path") -> dict[str, os.stat_result]:
    """Find the files of a folder, also deep inside but not hidden, by name relative to it, in the order of names.

    Raises:
        Refused: there is no such folder.
    """
    if not root.is_dir():
        raise Refused(f"{setting}={root}: no such folder; put the data there or name another")
    found: dict[str, os.stat_result] = {}
    pending = [str(root)]
    while pending:
        with os.scandir(pending.pop()) as inside:
            for item in inside:
                if item.name.startswith("."):
                    continue
                if item.is_dir():
                    pending.append(item.path)
                else:
                    found[os.path.relpath(item.path, root)] = item.stat()
    return dict(sorted(found.items()))


def stamps(found: Mapping[str, os.stat_result]) -> Iterator[str]:
    """Give a text per file that differs when the file does."""
    return (f"{name}/{state.st_size}/{state.st_mtime_ns}" for name, state in found.items())


def class_caption(classes: Sequence[str], label: int) -> Captions:
    """Give the name of a class as the caption.

    Raises:
        BadSample: there is no class of this number.
    """
    if not 0 <= label < len(classes):
        raise BadSample("no such class", f"class {label}, where data.classes names {len(classes)}")
    return [(CAPTION, classes[label])]
