"""The processes that work together; a lone one is a world of size 1, and exchanges nothing.

torchrun starts them and says through the environment who they are. When they train, each takes a consecutive part of
every step's samples; what they have to tell each other is the gradient, once per step, and a few numbers. When they
draw or measure, parts of the work are dealt out to them, and all are given what all have made. The first process, of
rank 0, is the one that writes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lab.errors import ProcessLost

Item = TypeVar("Item")
Poll = Callable[[], None]

BUCKET = 16 * 2**20  # numbers that are summed in one go: enough to fill the wire, little beside the model


class World:
    """One process among others.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        local_rank: of this process on its machine, which is the number of its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._pulses = None if store is None else PrefixStore("pulse", store)

    @classmethod
    def connect(cls, timeout_s: float = 1800.0) -> "World":
        """Meet the processes that torchrun started, if it did.

        Args:
            timeout_s: how long the others wait for one before they give up. It must outlast a preview and an
                evaluation, which the first process makes while the others wait.

        Raises:
            ProcessLost: one of them is not there, or left at once.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        timeout = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ProcessLost(
                f"process {os.environ.get('RANK')} did not meet the others ({reason}): look at what they say"
            ) from error
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part in good order; after an error the launcher ends the others."""
        if self.size > 1 and error is None:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batch: int, rank: int | None = None) -> range:
        """Give the part of a step's samples, 0 .. batch - 1, that is this process's or another's."""
        rank = self.rank if rank is None else rank
        return range(rank * batch // self.size, (rank + 1) * batch // self.size)

    def beat(self, place: str) -> None:
        """Say that this process has come to a place, such as "step 3", for the message should it be lost.

        Raises:
            ProcessLost: the process that keeps what is said is gone.
        """
        if self._pulses is not None:
            with self._exchanging():
                self._pulses.set(str(self.rank), place)

    def largest(self, number: int) -> int:
        """Give the largest of every process's number, to every process."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        with self._exchanging():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers.item())

    def from_first(self, number: int) -> int:
        """Give the first process's number to every process."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        with self._exchanging():
            dist.broadcast(numbers, src=0)
        return int(numbers.item())

    def fill_from_first(self, rows: Tensor, size: int, known: Mapping[int, Tensor]) -> list[int]:
        """Fill rows (n, ...) on the CPU with those that the first process knows, on every process.

        Args:
            rows: of the same shape everywhere; changed.
            size: of them are a part, fewer the last.
            known: the rows of some parts, by the number of the part; the first process's count.

        Returns:
            The numbers of the parts that it does not know.
        """
        parts = rows.split(size)
        is_missing = torch.ones(len(parts), dtype=torch.uint8)
        for number, part in known.items():
            parts[number].copy_(part)
            is_missing[number] = 0
        if self.size > 1:
            with self._exchanging():
                dist.broadcast(is_missing, src=0)
                dist.broadcast(rows, src=0)
        return [number for number, missing in enumerate(is_missing.tolist()) if missing]

    def deal(
        self,
        parts: Sequence[Sequence[Item]],
        make: Callable[[Sequence[Item]], Tensor],
        nothing: Tensor,
        what: str,
        poll: Poll,
    ) -> Iterator[Tensor]:
        """Deal the parts of some work out to the processes, one to each at a time, and give all parts to all.

        Args:
            parts: the same on every process.
            make: gives a row (...) on the CPU for each item of a part, the same on whichever process.
            nothing: (0, ...), no rows of that kind.
            what: is made, for the message should a process be lost.
            poll: called when all that was dealt out is made and kept; what it raises ends the work.

        Yields:
            The rows of each part, in the order of the parts.

        Raises:
            torch.OutOfMemoryError: the memory of one of them ran out; on every process.
            ProcessLost: one of them is gone.
        """
        for start in range(0, len(parts), self.size):
            poll()
            dealt, own = parts[start : start + self.size], start + self.rank
            self.beat(f"part {own + 1} of {what}")
            failure = None
            try:
                rows = make(parts[own]) if own < len(parts) else nothing
            except torch.OutOfMemoryError as error:
                failure = str(error)
            if self.largest(int(failure is not None)):
                raise torch.OutOfMemoryError(failure or "on another process")
            counts = [*map(len, dealt), *[0] * (self.size - len(dealt))]
            yield from self.gather_rows(rows, counts).split(counts[: len(dealt)])

    def patient(self, poll: Poll) -> Poll:
        """Give what may interrupt the making of a part: ``poll`` in a lone process, nothing in one of several.

        When one dies, the launcher asks the others to stop; they come to their next exchange all the same and name it.
        """
        return poll if self.size == 1 else lambda: None

    def gather(self, values: Tensor, batch: int) -> Tensor:
        """Put what every process says of its share of a step's samples together, in the order of the samples.

        Args:
            values: (n, ...), of this process's n samples.
            batch: samples of all.

        Returns:
            (batch, ...), the same on every process.
        """
        return self.gather_rows(values, [len(self.share(batch, rank)) for rank in range(self.size)])

    def join(self, rows: Tensor) -> tuple[Tensor, int]:
        """Put rows of all processes together, so that a loss of the whole has its gradient on every process.

        All processes must call it at once, and make their ways back at once.

        Args:
            rows: (n, d), of this process; every process may have another n.

        Returns:
            (sum of n, d), in the order of the processes, and the place where this process's own rows begin.
        """
        if self.size == 1:
            return rows, 0
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with self._exchanging():
            dist.all_gather(counts, torch.tensor([len(rows)]))
        numbers = [int(count.item()) for count in counts]
        joined: Tensor = _Joined.apply(rows, self, numbers)
        return joined, sum(numbers[: self.rank])

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Put (n, ...) rows of all processes together, of which process r has ``counts[r]``."""
        if self.size == 1:
            return rows
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        with self._exchanging():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_text(self, text: str) -> list[str]:
        """Give every process's text to every process, in the order of the processes; no text ends in a NUL."""
        if self.size == 1:
            return [text]
        data = text.encode()
        length = self.largest(len(data))
        padded = torch.tensor(list(data.ljust(length, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        if length:
            with self._exchanging():
                dist.all_gather(parts, padded)
        return [bytes(part.tolist()).rstrip(b"\0").decode() for part in parts]

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; they hold tensors of the same shapes in the same order."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._exchanging():
                dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """Name the processes that are behind when an exchange fails: one that died, or one that hangs."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ProcessLost(f"process {self.rank} lost the others ({reason}){self._behind()}") from error

    def _behind(self) -> str:
        assert self._pulses is not None
        places = {}
        for rank in range(self.size):
            try:
                self._pulses.wait([str(rank)], timedelta(seconds=1))
                places[rank] = self._pulses.get(str(rank)).decode()
            except RuntimeError:  # the launcher's store is gone, or that process never said where it is
                continue
        last = ", ".join(f"process {rank} at {place}" for rank, place in places.items() if rank != self.rank)
        return f"; last seen: {last or 'none of them'}; the same command goes on from what is saved"


class _Joined(torch.autograd.Function):
    """Rows of all processes; the gradient of this one's is the sum of what every process's loss says of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, counts: Sequence[int]) -> Tensor:
        ctx.world, ctx.begin, ctx.num = world, sum(counts[: world.rank]), len(rows)
        return world.gather_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = gradient.clone()
        ctx.world.sum_([whole])
        return whole[ctx.begin : ctx.begin + ctx.num], None, None


ALONE = World()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one type up to a size, in order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
