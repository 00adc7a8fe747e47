"""A polite end: a signal sets a flag, and the run stops at the next step boundary with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopper:
    """Remembers that this process was asked to stop.

    Attributes:
        signal: number of the first signal that arrived, or ``None``.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell reports it."""
        assert self.signal is not None
        return 128 + self.signal

    @contextmanager
    def listening(self) -> Iterator["Stopper"]:
        """Catch SIGTERM, SIGINT and SIGUSR1 inside the block; a second Ctrl-C ends at once."""
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self._note) for number in watched}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = self.signal or number
