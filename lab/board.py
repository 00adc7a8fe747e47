"""TensorBoard's copy of what a run measures; ``metrics.jsonl`` is the truth."""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


class Board:
    """The event file of this process; the first OSError switches it off with one warning.

    Args:
        folder: of all event files of the run.

    Attributes:
        forget_from: the step from which on TensorBoard is to forget what earlier files say; ``None`` for nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.forget_from: int | None = None
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._works = True

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a number."""
        self._write(lambda writer: writer.add_scalar(name, value, step))

    def picture(self, name: str, picture: "Image.Image", step: int) -> None:
        """Add a picture."""
        pixels = np.asarray(picture.convert("RGB"))
        self._write(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def flush(self) -> None:
        """Bring to the disk what was added."""
        if self._writer is not None:
            self._write(lambda writer: writer.flush())

    def close(self) -> None:
        """End the file; the next number begins another."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())
        self._writer = None

    def _write(self, act: Callable[["SummaryWriter"], None]) -> None:
        if not self._works:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                _wait_to_come_last(self._folder)
                self._writer = SummaryWriter(str(self._folder), purge_step=self.forget_from)
            act(self._writer)
        except OSError as error:
            self._works = False
            _log.warning("TensorBoard is off for the rest of this process (%s); metrics.jsonl goes on", error)


def _wait_to_come_last(folder: Path) -> None:
    """Wait until a new event file sorts behind those that are there, but no more than two seconds.

    TensorBoard reads them in the order of their names, which are second, host, process and number, as texts: of two in
    one second the later may come first, and then what a resume forgets stays.
    """
    newest = max((path.name for path in folder.glob("events.out.tfevents.*")), default="")
    own, until = f"{socket.gethostname()}.{os.getpid()}.", time.monotonic() + 2
    while f"events.out.tfevents.{int(time.time()):010d}.{own}" <= newest and time.monotonic() < until:
        time.sleep(0.02)
