"""The list of a finite data set on the disk: made once, mapped into memory by every process that reads.

    <key>.arrow   a row per sample (Arrow IPC); the pages are shared, and no Python object is kept per row
    <key>.pack    images' bytes, one after another, where the data set's own files do not hold them as they are
    <key>.json    how many rows, how many of them are bad, their fingerprint; written last: where it is, all is there
    <key>.sizes   width and height of each picture, 8 bytes a row; only where somebody has asked for them

The key is a hash of what the collection says of its state: when a file changes, another index is made. The fingerprint
is one of the rows alone, and so the same wherever the data lies.
"""

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lab.data.collection import Collection, Entry, Record
from lab.data.pictures import size_of
from lab.data.source import BadSample
from lab.errors import BadData, Refused
from lab.storage import whole, write_whole

FORMAT = 1  # raise when rows or their meaning change
ROWS = 4096  # per batch of the Arrow file
MAX_BYTES = 1 << 28  # of one image
HEAD_BYTES = 1 << 16  # of an image, in which nearly every one says its size
COLUMNS = ("id", "file", "offset", "size", "sha256", "kinds", "texts", "reason", "detail", "place")


class Index:
    """The rows of a finite data set.

    Args:
        path: of the Arrow file.
        root: what the files of the records are relative to.

    Attributes:
        facts: "num" rows, their "fingerprint", how many are "bad" already and how many have an "empty" caption.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())

    def __reduce__(self) -> "tuple[type[Index], tuple[Path, Path]]":
        return Index, (self.path, self.root)

    def __len__(self) -> int:
        return int(self.facts["num"])

    @property
    def places(self) -> np.ndarray:
        """(n,) float64, of the samples' groups in [0, 1)."""
        places: np.ndarray = self._table.column("place").to_numpy()
        return places

    def record(self, row: int) -> Record:
        """Give one row, from 0 on."""
        (cells,) = self._table.slice(row, 1).to_pylist()
        reason, detail = cells.pop("reason"), cells.pop("detail")
        captions = tuple(zip(cells.pop("kinds"), cells.pop("texts"), strict=True))
        file, _ = os.fsdecode(cells.pop("file")), cells.pop("place")
        return Record(**cells, file=file, captions=captions, fault=BadSample(reason, detail) if reason else None)

    def read(self, record: Record) -> bytes:
        """Read the bytes of a record's image; whether they are the right ones is not looked at.

        Raises:
            BadSample: the file is gone, cannot be read, is shorter than it was, or the image is absurdly large.
        """
        if record.size > MAX_BYTES:
            raise BadSample("file too large", f"{record.size:,} bytes, at most {MAX_BYTES:,}")
        data = self._bytes(record.file, record.offset, record.size)
        if len(data) < record.size:
            raise BadSample("file cut short", f"{len(data)} of {record.size} bytes")
        return data

    def sizes(self) -> np.ndarray:
        """Give width and height (n, 2) of the pictures, turned as EXIF says; 0 where nobody can read them.

        They are read from the pictures' headers once, which shows a progress bar, and kept.

        Raises:
            StorageFailed: they cannot be written.
        """
        path = self.path.with_suffix(".sizes")
        if not path.exists():
            rows = tqdm(self._places(), "sizes of the pictures", len(self), unit="picture", disable=None, delay=1)
            sizes = np.fromiter((side for row in rows for side in self._size(*row)), dtype=np.uint32)
            write_whole(path, sizes.tobytes())
        return np.fromfile(path, dtype=np.uint32).reshape(-1, 2)

    def _places(self) -> Iterator[tuple[str, int, int]]:
        """File, offset and size of each row."""
        for batch in self._table.select(["file", "offset", "size"]).to_batches():
            files, offsets, sizes = (column.to_pylist() for column in batch.columns)
            yield from zip(map(os.fsdecode, files), offsets, sizes, strict=True)

    def _size(self, file: str, offset: int, size: int) -> tuple[int, int]:
        """Width and height of a picture: from its head, or all of it where that does not say."""
        try:
            found = size_of(self._bytes(file, offset, min(size, HEAD_BYTES)))
            return found if any(found) or size > MAX_BYTES else size_of(self._bytes(file, offset, size))
        except BadSample:
            return 0, 0

    def _bytes(self, file: str, offset: int, size: int) -> bytes:
        path = self.root / file if file else self.path.with_suffix(".pack")
        try:
            with path.open("rb", buffering=0) as opened:
                return os.pread(opened.fileno(), size, offset)
        except OSError as error:
            raise BadSample("file cannot be read", error.strerror or str(error)) from None

    @cached_property
    def _table(self) -> Any:
        import pyarrow

        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path))).read_all()


def open_index(collection: Collection) -> Index:
    """Open the index of a data set; make it, which shows a progress bar, if it is not there.

    Raises:
        Refused: there is no such data, or it is not to be trusted.
        BadData: its list is broken, or it is empty.
        StorageFailed: the index cannot be written.
    """
    captions = collection.captions
    known = [FORMAT, type(collection).__name__, collection.split.group, list(captions.kinds), captions.positions]
    digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=16)
    try:
        for text in collection.state():
            digest.update(os.fsencode(text) + b"\n")
    except Refused as missing:
        raise Refused(f"{missing}{collection.remedy and f'; to have it: {collection.remedy}'}") from None
    path = collection.cache_folder / f"{digest.hexdigest()}.arrow"
    if not path.with_suffix(".json").exists():
        _build(collection, path)
    return Index(path, collection.root)


def _build(collection: Collection, path: Path) -> None:
    """Write the three files."""
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    types = [text, pyarrow.binary(), pyarrow.int64(), pyarrow.int64(), pyarrow.binary(), texts, texts, text, text]
    schema = pyarrow.schema(list(zip(COLUMNS, [*types, pyarrow.float64()], strict=True)))
    rows: list[tuple[Any, ...]] = []
    facts, digest, packed = {"num": 0, "bad": 0, "empty": 0}, hashlib.blake2b(digest_size=8), 0
    with (
        _fresh_garbage_only(),
        whole(path) as beside,
        whole(path.with_suffix(".pack")) as pack,
        pack.open("wb") as images,
        pyarrow.OSFile(str(beside), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as writer,
    ):
        for entry in tqdm(
            _listed(collection), desc=f"index of {collection.path}", unit="sample", disable=None, delay=1
        ):
            rows.append(_row(entry, packed))
            if entry.data is not None:
                packed += images.write(entry.data)
            name, _, _, size, sha256, kinds, texts, reason, *_ = rows[-1]
            digest.update(ascii((name, size, kinds, texts, reason)).encode() + (entry.data or sha256))
            facts["num"] += 1
            facts["bad"] += bool(reason)
            facts["empty"] += "" in texts
            if len(rows) == ROWS:
                writer.write_batch(pyarrow.record_batch([*zip(*rows, strict=True)], schema=schema))
                rows.clear()
        if rows:
            writer.write_batch(pyarrow.record_batch([*zip(*rows, strict=True)], schema=schema))
    write_whole(path.with_suffix(".json"), json.dumps({**facts, "fingerprint": digest.hexdigest()}).encode())


@contextmanager
def _fresh_garbage_only() -> Iterator[None]:
    """Spare the collector all that is there already, at which it would look again and again: a fifth of a listing."""
    was_frozen = gc.get_freeze_count() > 0  # as in a worker of the loader, which keeps its parent's objects frozen
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()


def _listed(collection: Collection) -> Iterator[Entry]:
    """The entries; an error of reading is one of the data."""
    is_empty = True
    try:
        for entry in collection.entries():
            yield entry
            is_empty = False
    except OSError as error:
        raise BadData(f"{collection.path}: cannot be read: {error}") from error
    if is_empty:
        raise BadData(f"{collection.path}: holds no sample")


def _row(entry: Entry, packed: int) -> tuple[Any, ...]:
    """The cells of an entry, in the order of ``COLUMNS``; its own bytes come behind those that are packed."""
    record, fault = entry.record, entry.record.fault
    return (
        _printable(record.id),
        os.fsencode(record.file),
        record.offset if entry.data is None else packed,
        record.size if entry.data is None else len(entry.data),
        record.sha256,
        [kind for kind, _ in record.captions],
        [text for _, text in record.captions],
        fault.reason if fault else "",
        _printable(fault.detail) if fault else "",
        entry.place,
    )


def _printable(text: str) -> str:
    """The text with an escape for what UTF-8 cannot say."""
    return text.encode("utf-8", "backslashreplace").decode()
