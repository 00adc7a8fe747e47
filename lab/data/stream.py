"""Tar files elsewhere, read shard by shard, in an order that is a function of (seed, epoch).

``path`` is a list: a JSON object a line, with the "url" of a shard and, where they are known, the "num" of its samples
and the "sha256" of the tar; or with a range of shards, {"url": "https://host/x-{000..122}.tar"}. What is not known is
found out once, by reading everything through, and kept in the cache.

An epoch takes the shards in a random order, ``mixed`` of them at a time, whose samples are shuffled together. So a slot
says at once which sample of which shard it is, whoever asks; a run that goes on fetches the shards where it stood, and
those behind are never read again. A fetched shard is a file like any other: it is listed and read as by
``lab.data.shards``, shared by all processes of the machine, and removed when newer ones need its room and nobody
reads it.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from tqdm import tqdm

from lab.config import Config, parse
from lab.data import caption
from lab.data.collection import PictureSet
from lab.data.fetch import check, fetch, shown
from lab.data.finite import SUBSTITUTES, delivered
from lab.data.index import Index, open_index
from lab.data.shards import Shards
from lab.data.source import Sample
from lab.data.split import Split, SplitConfig, place
from lab.errors import BadData, Refused
from lab.randomness import key
from lab.storage import write_whole

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAME = re.compile(r"[\w-][\w.-]{0,90}\.tar", re.ASCII)


class Shard(Config):
    """A tar that is somewhere else.

    Attributes:
        url: where.
        num: of its samples; ``None`` where nobody has counted them.
        sha256: of its bytes in hexadecimal digits; "" where it is not known.
    """

    url: str
    num: int | None = Field(None, ge=0)
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")

    def name(self, number: int) -> str:
        """Give the name of its file, shard ``number`` of the list."""
        last = self.url.partition("?")[0].rpartition("/")[2]
        return last if _NAME.fullmatch(last) else f"{number:06d}.tar"


class StreamConfig(PictureSet):
    """The remote shards that the list ``path`` names; what is not said here is of ``PictureSet``.

    Attributes:
        heldout: share of the shards, chosen by their names, that training never sees.
        mixed: shards whose samples are shuffled together.
        keep_gb: fetched shards that nobody reads are removed, the oldest first, while all take more than so many GB.
        allow_pipe: whether "pipe:" URLs are run as commands.
    """

    kind: Literal["stream"] = "stream"
    heldout: float = Field(0.1, ge=0, lt=1)
    mixed: int = Field(4, ge=1)
    keep_gb: float = Field(20.0, ge=0)
    allow_pipe: bool = False

    @model_validator(mode="after")
    def _possible(self) -> "StreamConfig":
        if self.buckets:
            raise ValueError(
                "buckets sort pictures by their sizes before the first step, and those of remote shards are not known "
                "until they come: fetch the tars into a folder and set kind to shards, or leave buckets out"
            )
        return self


class Stream:
    """One side of the remote shards.

    Args:
        config: where they are, and how images and captions are made.
        split: which side.

    Raises:
        Refused: there is no such list, a line of it is wrong, or nothing is on that side.
        BadData, StorageFailed: as from ``fetch``, where the samples of a shard are still to be counted.
    """

    num: int

    def __init__(self, config: StreamConfig, split: Split = "train") -> None:
        self.config, self.split = config, split
        self._store = _Store(config, listed(config))
        shards = self._store.counted()
        heldout = [place(shard.name(number)) < config.heldout for number, shard in enumerate(shards)]
        self._numbers = [number for number, out in enumerate(heldout) if out == (split == "heldout")]
        self._nums = np.array([shards[number].num for number in self._numbers], dtype=np.int64)
        self.num = int(self._nums.sum())
        if not self.num:
            raise Refused(
                f"data.heldout={config.heldout} leaves no sample of the {len(shards)} shards of {config.path} on the "
                f"{split} side: change it"
            )
        told = config.model_dump(mode="json", exclude={"path", "cache", "max_bad", "keep_gb", "allow_pipe", "buckets"})
        named = [(shard.name(number), shard.num, shard.sha256) for number, shard in enumerate(shards)]
        known = json.dumps([split, told, named], sort_keys=True)
        self.fingerprint = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()

    def __reduce__(self) -> "tuple[type[Stream], tuple[StreamConfig, Split]]":
        return Stream, (self.config, self.split)

    def place(self, seed: int, slot: int) -> tuple[int, int]:
        """Give the shard, by its number in the list, and the position in it of a slot."""
        epoch, position = divmod(slot, self.num)
        order = _shuffled(seed, "shards", epoch, len(self._numbers))
        ends = np.cumsum(self._nums[order])
        group = int(np.searchsorted(ends, position, side="right")) // self.config.mixed
        members = order[group * self.config.mixed :][: self.config.mixed]
        begin = ends[group * self.config.mixed] - self._nums[members[0]]
        ends = np.cumsum(self._nums[members])
        mixed = _shuffled(seed, "order", epoch * len(self._numbers) + group, int(ends[-1]))[position - begin]
        member = int(np.searchsorted(ends, mixed, side="right"))
        return self._numbers[members[member]], int(mixed - ends[member] + self._nums[members[member]])

    def sample(self, seed: int, slot: int) -> Sample:
        """Give sample ``slot`` (from 0) of the run with this seed; its image is (3, size, size) float32 in [-1, 1].

        Raises:
            BadData: its shard cannot be fetched or is not the one of the list, or neither the sample nor one of its
                substitutes, which are of the same shard, can be used.
        """
        number, row = self.place(seed, slot)
        index = self._store.index(number)
        others = key(seed, "substitute", slot).integers(len(index), size=SUBSTITUTES).tolist()
        return delivered(self.config, ((index, each) for each in chain([row], others)), self.config.square, seed, slot)

    def captions(self) -> Iterable[str]:
        """Give every caption of this side in every template, for which every shard is fetched."""
        for number in self._numbers:
            index = self._store.index(number)
            for row in range(len(index)):
                yield from caption.spoken(index.record(row).captions, self.config.captions)


def listed(config: StreamConfig) -> list[Shard]:
    """Read the list, with ranges written out.

    Raises:
        Refused: there is none, it is empty, or a line of it is wrong.
    """
    path = Path(config.path)
    if not path.is_file():
        raise Refused(f'data.path={path}: no such file; write a list with a line {{"url": ...}} for each shard')
    shards: list[Shard] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
        except ValueError as error:
            raise Refused(f"{path}: line {number}: is no JSON ({error})") from None
        shard = parse(tree if isinstance(tree, dict) else {"url": tree}, Shard, f"{path}: line {number}")
        urls = list(_spelt_out(shard.url))
        if len(urls) > 1 and (shard.num is not None or shard.sha256):
            raise Refused(
                f"{path}: line {number}: num and sha256 are those of one shard, not of a range: leave them out"
            )
        for url in urls:
            check(url, config.allow_pipe)
            shards.append(shard.model_copy(update={"url": url}))
    if not shards:
        raise Refused(f'{path}: is empty; write a line {{"url": ...}} for each shard')
    return shards


def _spelt_out(url: str) -> Iterator[str]:
    """The URLs of a range; the URL itself where there is none."""
    match = _RANGE.search(url)
    if match is None:
        yield url
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _spelt_out(f"{url[: match.start()]}{number:0{len(first)}d}{url[match.end() :]}")


class _Store:
    """The shards that were fetched, in a folder of the cache, a folder each.

    While a process may read a shard it shares the lock <number>.use, which alone keeps it from being removed; who
    fetches and lists it holds <number>.fetch.
    """

    def __init__(self, config: StreamConfig, shards: list[Shard]) -> None:
        self.config, self.shards = config, shards
        digest = hashlib.blake2b(json.dumps([shard.url for shard in shards]).encode(), digest_size=16).hexdigest()
        self.folder = config.cache_folder / "stream" / digest
        self._open: dict[int, tuple[Index, int]] = {}

    def counted(self) -> list[Shard]:
        """Find out what the list does not say, once."""
        path = self.folder / "counts.json"
        known = json.loads(path.read_bytes()) if path.exists() else {}
        unknown = [number for number, shard in enumerate(self.shards) if shard.num is None]
        for number in tqdm(unknown, desc=f"shards of {self.config.path}", unit="shard", disable=None):
            if str(number) not in known:
                num = len(self.index(number))
                with self._file(number).open("rb") as tar:
                    known[str(number)] = {"num": num, "sha256": hashlib.file_digest(tar, "sha256").hexdigest()}
                write_whole(path, json.dumps(known).encode())
            self.shards[number] = self.shards[number].model_copy(update=known[str(number)])
        return self.shards

    def index(self, number: int) -> Index:
        """Open a shard; fetch it if it is not here.

        Raises:
            BadData: it cannot be fetched, is damaged, or has another number of samples than the list says.
        """
        if number not in self._open:
            while len(self._open) >= 2 * self.config.mixed:  # the shards of now, and of what was or comes next
                _, handle = self._open.pop(next(iter(self._open)))
                os.close(handle)
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / f"{number}.use", LOCK_FLAGS)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                with self._locked(f"{number}.fetch"):
                    index = self._listed(number)
            except BaseException:
                os.close(handle)
                raise
            self._open[number] = index, handle
        return self._open[number][0]

    def _listed(self, number: int) -> Index:
        shard, file = self.shards[number], self._file(number)
        if not file.exists():
            shutil.rmtree(file.parent, ignore_errors=True)  # what a process left that was killed
            try:
                fetch(shard.url, file, shard.sha256, allow_pipe=self.config.allow_pipe)
            except BadData as error:
                raise BadData(f"{error}; if the shards were changed on purpose, delete {self.folder}") from None
            self._make_room()
        index = open_index(
            Shards(
                path=str(file.parent),
                cache=str(file.parent / "index"),
                captions=self.config.captions,
                split=SplitConfig(group="id"),
            )
        )
        if shard.num not in (None, len(index)):
            raise BadData(
                f"{shown(shard.url)}: has {len(index)} samples, but {self.config.path} says {shard.num}: correct it"
            )
        return index

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}" / self.shards[number].name(number)

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        handle = os.open(self.folder / name, LOCK_FLAGS)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _make_room(self) -> None:
        """Remove the oldest shards that nobody reads while there are too many."""
        with self._locked("room"):
            tars = sorted((tar.stat().st_mtime_ns, tar.stat().st_size, tar) for tar in self.folder.glob("*/*.tar"))
            total = sum(size for _, size, _ in tars)
            for _, size, tar in tars:
                if total <= self.config.keep_gb * 1e9:
                    return
                with (
                    suppress(BlockingIOError),
                    self._locked(f"{int(tar.parent.name)}.use", fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    tar.unlink()  # first: where it is, all is there
                    shutil.rmtree(tar.parent)
                    total -= size


@lru_cache(maxsize=8)
def _shuffled(seed: int, stream: str, counter: int, num: int) -> np.ndarray:
    """A permutation; two epochs' shards and the samples of a few groups are asked for again and again."""
    return key(seed, stream, counter).permutation(num)
