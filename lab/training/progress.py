"""The bar in the terminal: how far a run is, when it ends, and whether the model waits for its data."""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from lab.training.budget import Ending

log = logging.getLogger(__name__)
STARVED, IN_A_ROW = 0.2, 3  # share of the time that a model may wait for data, and how often more than that is too much


class Progress:
    """A bar over the steps of a run.

    Args:
        step: steps made before.
        workers: that load data, for the warning.
        shown: whether this process shows it.
    """

    def __init__(self, step: int, workers: int, *, shown: bool) -> None:
        self._bar: tqdm[Any] = tqdm(
            initial=step, unit="step", desc="train", dynamic_ncols=True, disable=not shown, leave=True
        )
        self._workers = workers
        self._starved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, ending: Ending | None) -> None:
        """Count a step of a run that ends so, which a budget may not have decided yet."""
        self._bar.total = ending.last if ending else None
        self._bar.update()

    def show(self, figures: Mapping[str, float]) -> None:
        """Show some of the figures of the latest steps, and warn once if the model starves."""
        wait = figures["time/data_wait_share"]
        memory = figures.get("time/peak_memory_gib")
        shown = {
            "data_wait": f"{wait:.0%}",
            "images_per_s": f"{figures['time/images_per_second']:.0f}",
            "loss": f"{figures.get('train/loss', float('nan')):.4f}",
        }
        self._bar.set_postfix(shown if memory is None else {**shown, "memory": f"{memory:.1f}GiB"})
        self._starved = self._starved + 1 if wait > STARVED or self._starved >= IN_A_ROW else 0
        if self._starved == IN_A_ROW:
            log.warning(
                "the model waits for its data %.0f %% of the time: raise train.workers (now %d)",
                100 * wait,
                self._workers,
            )
