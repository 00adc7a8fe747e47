"""The samples that could not be used: each written down once, counted, and too many of them end the run.

``quarantine.jsonl`` in the run's folder has a line for each: the slot that asked for it first, its id, the reason, what
is particular about it, and the SHA-256 of its bytes. A resume forgets what came after its checkpoint and finds
it again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lab.data.source import Fault
from lab.errors import StorageFailed
from lab.storage import write_whole
from lab.world import World

LEAST = 5  # bad samples that any run may meet


class Quarantine:
    """Keeps account of the bad samples of a run, over all its processes.

    Args:
        path: of the file.
        num: how many samples there are; ``None`` for an endless source.
        max_bad: share of bad ones above which the run ends.
    """

    def __init__(self, path: Path, num: int | None, max_bad: float) -> None:
        self.path, self.num, self.max_bad = path, num, max_bad
        self._found: dict[str, Fault] = {}
        self._pending: list[Fault] = []

    def __len__(self) -> int:
        return len(self._found)

    def rewind(self, seen: int, *, writes: bool) -> None:
        """Read what was found among the first ``seen`` slots, and forget the rest.

        Args:
            seen: samples consumed.
            writes: whether this process writes the file.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                fault = Fault(**json.loads(line))
            except (ValueError, TypeError):  # the last one, cut short
                continue
            if fault.slot < seen:
                self._found[fault.id] = fault
                kept.append(line)
        if writes and kept != lines:
            write_whole(self.path, b"".join(kept))

    def add(self, faults: Iterable[Fault]) -> None:
        """Take note of bad samples, until ``settle``."""
        self._pending += faults

    def settle(self, world: World) -> None:
        """Bring together what the processes have found; all of them call this at the same step.

        Raises:
            StorageFailed: the file cannot be written.
        """
        texts = world.gather_text(json.dumps([asdict(fault) for fault in self._pending]) if self._pending else "")
        self._pending = []
        found = (Fault(**fault) for text in texts if text for fault in json.loads(text))
        new: list[Fault] = []
        for fault in sorted(found, key=lambda fault: fault.slot):
            if fault.id not in self._found:
                self._found[fault.id] = fault
                new.append(fault)
        if new and world.is_first:
            self._append("".join(json.dumps(asdict(fault)) + "\n" for fault in new))

    def excess(self, seen: int) -> str:
        """Say why the run cannot go on, "" while it can.

        Args:
            seen: samples consumed.
        """
        delivered = min(seen, self.num or seen)
        if len(self) < LEAST or len(self) <= self.max_bad * delivered:
            return ""
        reasons = Counter(fault.reason for fault in self._found.values()).most_common()
        table = "\n".join(f"{count:>8}  {reason}" for reason, count in reasons)
        return (
            f"{len(self)} of {delivered} samples are bad, more than data.max_bad={self.max_bad:g} allows; mend them, "
            f"or go on by --resume with a larger one; {self.path} names each\n{table}"
        )

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageFailed(f"{self.path}: cannot be written: {error.strerror}") from error
