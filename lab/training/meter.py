"""What a training loop says of itself between two lines of the log."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means of the figures since the last reading, and where the time went.

    The sums are a part of the checkpoint, so that a run writes the same lines however often it was interrupted; the
    times are this process's own.

    Args:
        state: sums and steps to go on from.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sums = {name: torch.tensor(value) for name, value in state["sums"].items()} if state else {}
        self._steps = int(state["steps"]) if state else 0
        self._skipped = int(state.get("skipped", 0)) if state else 0
        self._timed, self._waited, self._began = 0, 0.0, time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Give sums and steps as JSON values; float32 survives JSON exactly."""
        sums = {name: value.item() for name, value in self._sums.items()}
        return {"sums": sums, "steps": self._steps, "skipped": self._skipped}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in the figures of one step."""
        self._steps += 1
        for name, value in figures.items():
            self._sums[name] = self._sums[name].to(value) + value if name in self._sums else value.clone()

    def skip(self) -> None:
        """Count a step that was not made."""
        self._skipped += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a step of this process, and the time inside the block as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin
        self._timed += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out of the speed."""
        begin = time.perf_counter()
        yield
        self._began += time.perf_counter() - begin

    def read(self, batch: int, peak_memory: float | None = None) -> dict[str, float]:
        """Give the means over the steps made and the speed since the last reading, and start anew.

        Args:
            batch: samples per step.
            peak_memory: to be told with them, in GiB; of a device that has memory of its own.
        """
        elapsed = time.perf_counter() - self._began
        figures = {f"train/{name}": value.item() / self._steps for name, value in self._sums.items()}
        if self._skipped:
            figures["train/skipped"] = float(self._skipped)
        figures["time/images_per_second"] = self._timed * batch / elapsed
        figures["time/data_wait_share"] = self._waited / elapsed
        if peak_memory is not None:
            figures["time/peak_memory_gib"] = peak_memory
        self._sums, self._steps, self._skipped = {}, 0, 0
        self._timed, self._waited, self._began = 0, 0.0, time.perf_counter()
        return figures
