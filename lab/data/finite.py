"""A finite data set as a source: slot -> epoch and position -> record -> bytes -> image and caption.

The order of an epoch is a permutation that depends on (seed, epoch) alone, and on the batch where pictures are sorted
by their shapes (``lab.data.buckets``). Crop, ground and caption depend on (seed, slot), so a picture looks and reads
otherwise in each epoch. A slot whose sample cannot be used is given another one, drawn by the slot; nothing else moves.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np

from lab.data import caption, pictures
from lab.data.buckets import Buckets, listed, nearest
from lab.data.collection import Collection, PictureSet, Record
from lab.data.index import Index
from lab.data.source import BadSample, Fault, Sample
from lab.data.split import Split
from lab.errors import BadData, Refused
from lab.images import Shape
from lab.randomness import key

SUBSTITUTES = 16  # tried for a slot before the data is given up


class Finite:
    """One side of a finite data set, shuffled anew in every epoch.

    Args:
        collection: what it is made of, and how images and captions are made.
        index: of the collection.
        split: which side.
        batch: samples of a step, which are to have one shape where the collection has several; 0 for squares alone.

    Raises:
        Refused: there is nothing on that side.
        StorageFailed: the sizes of the pictures cannot be kept.
    """

    def __init__(self, collection: Collection, index: Index, split: Split = "train", batch: int = 0) -> None:
        self.collection, self.index, self.split = collection, index, split
        heldout = index.places < collection.split.heldout
        self._rows = np.flatnonzero(heldout if split == "heldout" else ~heldout).astype(np.uint32)
        if not len(self._rows):
            raise Refused(
                f"data.split.heldout={collection.split.heldout} leaves none of the {len(index)} samples of "
                f"{collection.path} on the {split} side: change it, or data.split.group={collection.split.group}"
            )
        told = collection.model_dump(mode="json", exclude={"path", "folder", "cache", "max_bad", "remedy", "buckets"})
        facts = [split, told, index.facts["fingerprint"]]
        self._buckets: Buckets | None = None
        if collection.buckets and batch:
            shapes = collection.shapes
            self._buckets = Buckets(shapes, nearest(index.sizes(), shapes), batch)
            facts += [shapes, batch]
        self.fingerprint = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def num(self) -> int:
        """How many samples are on this side."""
        return len(self._rows)

    @property
    def summary(self) -> str:
        """One line for people."""
        size, empty, bad = (self.index.facts[name] for name in ("num", "empty", "bad"))
        shapes = f"; {listed(self._buckets.counts(self._rows))}" if self._buckets else ""
        return f"{self.num:,} of {size:,} samples, {empty:,} of them all with an empty caption, {bad:,} bad{shapes}"

    def sample(self, seed: int, slot: int) -> Sample:
        """Give sample ``slot`` (from 0) of the run with this seed; its image is (3, H, W) float32 in [-1, 1].

        Raises:
            BadData: neither the sample of this slot nor one of the substitutes, which are given its shape, can be used.
        """
        epoch, position = divmod(slot, len(self._rows))
        row = int(self._order(seed, epoch)[position])
        shape = self._buckets.shape(row) if self._buckets else self.collection.square
        candidates = ((self.index, each) for each in self._candidates(row, seed, slot))
        return delivered(self.collection, candidates, shape, seed, slot)

    def captions(self) -> Iterable[str]:
        """Give every caption of this side in every template."""
        for row in self._rows.tolist():
            yield from caption.spoken(self.index.record(row).captions, self.collection.captions)

    def _candidates(self, row: int, seed: int, slot: int) -> Iterator[int]:
        """The row of a slot, then those that may stand in its place: of its shape, or where none is good, of any."""
        yield row
        rng = key(seed, "substitute", slot)
        if self._buckets:
            yield from rng.choice(self._buckets.alike(self._rows, row), SUBSTITUTES).tolist()
        yield from rng.choice(self._rows, SUBSTITUTES).tolist()

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch; kept for two, since batches that are prepared ahead cross from one to the next."""
        if (seed, epoch) not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            rng, rows = key(seed, "order", epoch), self._rows
            self._orders[seed, epoch] = (
                self._buckets.order(rows, epoch, rng) if self._buckets else rng.permutation(rows)
            )
        return self._orders[seed, epoch]


def delivered(
    config: PictureSet, candidates: Iterable[tuple[Index, int]], shape: Shape, seed: int, slot: int
) -> Sample:
    """Make the sample of a slot from the first row that can be used.

    Args:
        config: how images and captions are made.
        candidates: rows of indices: that of the slot, then those that may stand in its place.
        shape: of its image.
        seed, slot: crop, ground and caption are a function of them.

    Raises:
        BadData: none of them can be used.
    """
    faults: list[Fault] = []
    for index, row in candidates:
        record, data = index.record(row), b""
        try:
            if record.fault:
                raise record.fault
            kind, text = caption.choose(record.captions, config.captions, key(seed, "caption", slot))
            data = index.read(record)
            _check(record, data)
            rng = key(seed, "picture", slot)
            image, frame = pictures.image(data, config.picture, shape, rng, text)
        except BadSample as bad:
            digest = hashlib.sha256(data).hexdigest() if data else ""
            faults.append(Fault(slot, record.id, bad.reason, bad.detail, digest))
        else:
            return Sample(image, text, record.id, kind, frame, tuple(faults))
    last = faults[-1]
    raise BadData(
        f"{config.path}: none of {len(faults)} samples in a row can be used; the last: {last.id}: "
        f"{BadSample(last.reason, last.detail)}"
    )


def _check(record: Record, data: bytes) -> None:
    """Compare bytes with what was listed."""
    if record.sha256 and hashlib.sha256(data).digest() != record.sha256:
        raise BadSample("bytes differ from the index", "its hash is another")
