"""From sample slots to batches: a position in, the same batch out, whatever the number of workers."""

import gc
import signal
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lab.data.source import Fault, Frame, Sample, Source
from lab.errors import BadData


@dataclass(frozen=True)
class Batch:
    """Samples of consecutive slots, whose images have one shape.

    Attributes:
        images: (b, 3, H, W) float32 in [-1, 1].
        captions: b texts.
        slots: b sample slots; all randomness about a sample is keyed by its slot.
        ids: b names, for messages.
        seed: the run's seed.
        kinds: b kinds of captions, or none where nobody said.
        frames: b frames, what was cut out of which original; or none.
        faults: samples in whose places others of the batch stand.
    """

    images: Tensor
    captions: tuple[str, ...]
    slots: tuple[int, ...]
    ids: tuple[str, ...]
    seed: int
    kinds: tuple[str, ...] = ()
    frames: tuple[Frame | None, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.slots)

    def with_images(self, images: Tensor) -> "Batch":
        """Give the same batch with its images elsewhere (another device or layout)."""
        return replace(self, images=images)

    def split(self, size: int) -> "list[Batch]":
        """Cut into consecutive batches of a size, the last one perhaps smaller."""
        return [
            replace(
                self,
                images=self.images[begin : begin + size],
                captions=self.captions[begin : begin + size],
                slots=self.slots[begin : begin + size],
                ids=self.ids[begin : begin + size],
                kinds=self.kinds[begin : begin + size],
                frames=self.frames[begin : begin + size],
                faults=tuple(f for f in self.faults if f.slot in self.slots[begin : begin + size]),
            )
            for begin in range(0, len(self), size)
        ]


class _Slots(Dataset[tuple[int, Sample]]):
    """A source seen as a map from slots to samples."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, slot: int) -> tuple[int, Sample]:
        return slot, self.source.sample(self.seed, slot)


class Loader:
    """Batches of a source from any slot on.

    Args:
        source: gives the sample of a slot.
        seed: the run's seed.
        workers: processes that prepare batches ahead; 0 prepares them in this one.
    """

    def __init__(self, source: Source, seed: int, workers: int = 0) -> None:
        self.source, self.seed, self.workers = source, seed, workers

    def batches(self, start: int, sizes: Sequence[int], skipped: int = 0) -> Generator[Batch, None, None]:
        """Give batches for ever: of ``sizes[0]`` slots from ``start`` on, then ``sizes[1]``, and so on round and round.

        One in which the shape of the images changes comes in parts. Close it to end the workers.

        Args:
            start: the first slot.
            sizes: of the batches of one round.
            skipped: slots left out after each round, which other processes load.

        Raises:
            BadData: as from ``Source.sample``.
        """
        loader = DataLoader(
            _Slots(self.source, self.seed),
            batch_sampler=_Windows(start, sizes, skipped),
            num_workers=self.workers,
            collate_fn=self._parted,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_outlive_signals,
        )
        if self.workers:  # a collection would write to every page that workers share with this process, and so copy it
            gc.collect()
            gc.freeze()
        others = set(active_children())
        batches = iter(loader)
        workers = set(active_children()) - others
        try:
            for parts in batches:
                yield from parts
        except BadData as error:  # of a worker it comes with that one's traceback
            raise BadData(str(error).rpartition("BadData: ")[2].strip()) from None
        finally:
            if workers:
                _kill(workers)
                gc.unfreeze()

    def batch(self, slots: Sequence[int]) -> Batch:
        """Give the batch of these slots, whose images have one shape."""
        (batch,) = self.parts(slots)
        return batch

    def parts(self, slots: Sequence[int]) -> list[Batch]:
        """Give the batches of these slots, as many as the shape of the images changes."""
        return self._parted([(slot, self.source.sample(self.seed, slot)) for slot in slots])

    def _parted(self, items: list[tuple[int, Sample]]) -> list[Batch]:
        return [self._collate(list(part)) for _, part in groupby(items, key=lambda item: item[1].image.shape)]

    def _collate(self, items: list[tuple[int, Sample]]) -> Batch:
        slots, samples = zip(*items, strict=True)
        images = torch.stack([sample.image for sample in samples])
        return Batch(
            images,
            captions=tuple(sample.caption for sample in samples),
            slots=tuple(slots),
            ids=tuple(sample.id for sample in samples),
            seed=self.seed,
            kinds=tuple(sample.kind for sample in samples),
            frames=tuple(sample.frame for sample in samples),
            faults=tuple(replace(fault, slot=slot) for slot, s in items for fault in s.faults),
        )


def _outlive_signals(worker: int) -> None:
    """A signal to the whole process group must not kill the workers before the trainer has saved.

    What they have from their parent is left out of garbage collection, which would copy every page that it looks at.
    """
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill(workers: Collection[BaseProcess]) -> None:
    """End workers at once: they do not hear a polite signal, and one that waits for a file might keep us for ever."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's takes the end of a worker for an accident
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(timeout=1)
    finally:
        signal.signal(signal.SIGCHLD, handler)


class _Windows:
    """Consecutive windows of slots, of sizes that repeat, with a gap after each round."""

    def __init__(self, start: int, sizes: Sequence[int], skipped: int) -> None:
        self.start, self.sizes, self.skipped = start, sizes, skipped

    def __iter__(self) -> Iterator[list[int]]:
        slot = self.start
        while True:
            for size in self.sizes:
                yield list(range(slot, slot + size))
                slot += size
            slot += self.skipped
