"""A polite end: a signal sets a flag, and work stops at the next place where what is finished is on disk."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A signal ended the work; what is finished is kept.

    Attributes:
        exit_code: 128 + signal.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}: what is finished is kept, and the same command goes on")
        self.exit_code = 128 + number


class Interrupted(BaseException):
    """Leaves at once what leaves no trace; raised by a signal inside ``Stopper.interruptible``."""


class Stopper:
    """Remembers that this process was asked to stop.

    Attributes:
        signal: number of the first signal that arrived, or ``None``.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interrupts = False

    def check(self) -> None:
        """Do nothing until a signal has arrived.

        Raises:
            Stopped: one has.
        """
        if self.signal is not None:
            raise Stopped(self.signal)

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

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal, also an earlier one, end the block by ``Interrupted``; for long work that can be redone."""
        self._interrupts = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._interrupts:
            self._interrupts = False
            raise Interrupted
