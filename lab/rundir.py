"""One run, one folder: what was asked, where it ran, how far it came, what it measured.

    config.yaml        the resolved configuration; its presence makes the folder a run
    environment.json   the run's id, whose weights it began with, if another run's, and, per process that worked on it,
                       versions, commit, device, threads, arguments; settings that were changed on the way
    STATUS.json        running, finished, preempted or failed, and at which step; replaced, never half-written
    metrics.jsonl      the truth: one line per measurement, ``step`` and ``seen`` first, only appended to
    tb/                TensorBoard, derived from the same numbers; if it fails, training goes on without
    quarantine.jsonl   the samples that could not be used, which ``lab.training.quarantine`` writes
    previews/ ckpt/    pictures; checkpoints, which ``lab.training.checkpoint`` writes
    snapshots/         averages of the weights along the way, which ``lab.training.history`` writes
    averages/          averages made from them, by scripts/average.py
    .lock              held (flock) by the one process that may write, and naming it

Everything of a step is logged before the checkpoint of that step is saved: a resume from step s keeps the lines up to s
and repeats the rest. Which experiment a run is, and whether it may change, is decided elsewhere.
"""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from lab.board import Board
from lab.config import Config, dump
from lab.environment import describe_process
from lab.errors import BadData, Refused, StorageFailed
from lab.lock import Lock
from lab.storage import write_whole

if TYPE_CHECKING:
    from PIL import Image

State = Literal["running", "finished", "preempted", "failed"]

_UNFINISHED = {".lock", "environment.json"}  # what a creation that was cut short may leave


@dataclass(frozen=True)
class Status:
    """How far a run is, for launchers and people; ``checkpoint`` is the newest one's name, ``updated`` is UTC."""

    state: State
    step: int
    seen: int
    checkpoint: str | None = None
    reason: str = ""
    updated: str = ""


class RunDir:
    """A run's folder. ``create`` and ``open`` hold its lock until ``close``; ``view`` only reads."""

    def __init__(self, path: Path, lock: Lock | None) -> None:
        self.path = path
        self._lock = lock
        self._rewound = False
        self._is_new = False
        self._metrics: int | None = None
        self._board = Board(path / "tb")

    @classmethod
    def create(cls, path: str | Path, config: Config) -> "RunDir":
        """Start a run in a folder that is missing or empty, and lock it.

        As a context it takes itself back where it is refused before its first status.

        Raises:
            Refused: the folder holds a run or anything else, or another process is creating it.
            StorageFailed: it cannot be written.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refused(f"{path}: is a file; name a folder for the run") from None
        except OSError as error:
            raise StorageFailed(f"{path}: cannot be created: {error.strerror}") from error
        run = cls(path, Lock(path / ".lock"))
        try:
            found = sorted(entry.name for entry in path.iterdir() if entry.name not in _UNFINISHED)
            found = [name for name in found if not name.endswith(".tmp")]
            if "config.yaml" in found:
                raise Refused(f"{path}: holds a run already; resume it or choose another folder")
            if found:
                names = ", ".join(found[:3])
                raise Refused(f"{path}: holds something else than a run ({names}); choose another folder")
            run._is_new = True
            run._write_json("environment.json", {"run_id": os.urandom(8).hex(), "processes": []})
            write_whole(run.config_path, dump(config).encode())
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """Lock an existing run for writing.

        Raises:
            Refused: not a run, or another process (named) is writing to it.
        """
        run = cls.view(path)
        run._lock = Lock(run.path / ".lock")
        return run

    @classmethod
    def view(cls, path: str | Path) -> "RunDir":
        """Look at an existing run without locking it.

        Raises:
            Refused: not a run.
        """
        path = Path(path)
        if not cls.is_run(path):
            raise Refused(f"{path}: is not a run directory (no config.yaml there); train one with scripts/train.py")
        return cls(path, None)

    @staticmethod
    def is_run(path: str | Path) -> bool:
        """Whether a run was created there."""
        return (Path(path) / "config.yaml").is_file()

    @property
    def config_path(self) -> Path:
        """The resolved configuration, for ``lab.config.load``."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "ckpt"

    @property
    def quarantine(self) -> Path:
        """The file of the samples that could not be used."""
        return self.path / "quarantine.jsonl"

    @property
    def snapshots(self) -> Path:
        """The folder of the averages that were kept along the way."""
        return self.path / "snapshots"

    @property
    def averages(self) -> Path:
        """The folder of the averages that were made after the training."""
        return self.path / "averages"

    @property
    def run_id(self) -> str:
        """16 random hexadecimal digits, drawn when the run was created."""
        return str(self.environment()["run_id"])

    def environment(self) -> dict[str, Any]:
        """``{"run_id": ..., "processes": [...]}``, oldest process first, and "init_from" if weights were taken over."""
        return self._read_json("environment.json")

    @property
    def trained_on(self) -> str | None:
        """Kind of the device of its newest process, such as "cuda"; ``None`` where no process is on record."""
        devices = [str(process["device"]) for process in self.environment()["processes"]]
        return devices[-1].split(":")[0] if devices else None

    def record_init(self, origin: Mapping[str, str]) -> None:
        """Say in ``environment.json`` whose weights this run begins with: run id, checkpoint, which weights."""
        self._check_writable()
        self._write_json("environment.json", {**self.environment(), "init_from": dict(origin)})

    @contextmanager
    def reconfigured(self, config: Config, changes: Sequence[str]) -> Iterator[None]:
        """Put another resolved configuration in place, for a run that goes on otherwise than it began.

        The one before is put back where the block refuses to go on with the new one.

        Args:
            config: the new one.
            changes: what differs, "key: old -> new" lines; ``environment.json`` keeps them.
        """
        self._check_writable()
        before, environment = self.config_path.read_bytes(), self.environment()
        write_whole(self.config_path, dump(config).encode())
        if changes:
            listed = [*environment.get("changes", []), *changes]
            self._write_json("environment.json", {**environment, "changes": listed})
        try:
            yield
        except Refused:
            write_whole(self.config_path, before)
            self._write_json("environment.json", environment)
            raise

    def record_process(self, device: str, threads: int) -> None:
        """Add this process to ``environment.json``; see ``describe_process``."""
        self._check_writable()
        environment = self.environment()
        environment["processes"].append(describe_process(device, threads))
        self._write_json("environment.json", environment)

    def status(self) -> Status | None:
        """The last status written, or None before the first.

        Raises:
            BadData: STATUS.json was spoilt by something else.
        """
        if not (self.path / "STATUS.json").exists():
            return None
        try:
            return Status(**self._read_json("STATUS.json"))
        except TypeError:
            raise BadData(f"{self.path / 'STATUS.json'}: does not hold a status; delete it") from None

    def set_status(self, state: State, step: int, seen: int, checkpoint: str | None = None, reason: str = "") -> None:
        """Replace STATUS.json, after the metrics have reached the disk.

        Args:
            state: running, finished, preempted or failed.
            step: optimizer steps done.
            seen: samples consumed.
            checkpoint: the name of the newest checkpoint.
            reason: one line, why the run is in this state.
        """
        self.flush()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_json("STATUS.json", asdict(Status(state, step, seen, checkpoint, reason, now)))

    def flush(self) -> None:
        """Bring what was logged to the disk; call before a checkpoint is saved, which promises that it is there."""
        self._check_writable()
        if self._metrics is not None:
            os.fsync(self._metrics)
        self._board.flush()

    def rewind(self, step: int | None) -> None:
        """Forget the measurements after ``step``; call once before the first ``log`` of a process.

        A last line cut short by a crash goes too. TensorBoard is told to forget the same steps.

        Args:
            step: that of the checkpoint which training goes on from; None: no checkpoint, forget everything.

        Raises:
            BadData: a line other than the last one is spoilt.
        """
        self._check_writable()
        assert self._metrics is None, "rewind before the first log"
        kept = [line for line in self.metrics() if step is not None and line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        path = self.path / "metrics.jsonl"
        if path.exists() and path.read_bytes() != text.encode():
            write_whole(path, text.encode())
        self._board.forget_from = 0 if step is None else step + 1
        self._rewound = True

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read metrics.jsonl, ``{"step": ..., "seen": ..., name: value or None}`` per line; a cut last line is skipped.

        Raises:
            BadData: a line other than the last one is spoilt.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                if number < len(lines):
                    raise BadData(f"{path}: line {number} is spoilt; mend it or delete it") from None

    def log(self, step: int, seen: int, scalars: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and the same numbers to TensorBoard.

        Args:
            step: optimizer steps done.
            seen: samples consumed.
            scalars: name -> number; a NaN or an infinity is written as null.

        Raises:
            StorageFailed: the line cannot be written.
        """
        self._check_writable()
        values = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "seen": seen, **finite}, allow_nan=False) + "\n"
        try:
            if self._metrics is None:
                assert self._rewound or not (self.path / "metrics.jsonl").exists(), "rewind before the first log"
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._metrics = os.open(self.path / "metrics.jsonl", flags, 0o666)
            os.write(self._metrics, line.encode())
        except OSError as error:
            raise StorageFailed(f"{self.path / 'metrics.jsonl'}: cannot be written: {error.strerror}") from error
        for name, value in values.items():
            self._board.scalar(name, value, step)

    def save_picture(self, step: int, name: str, picture: "Image.Image") -> Path:
        """Keep a picture, such as a grid of samples, under previews/ and in TensorBoard.

        Returns:
            ``previews/<name>-<step, 8 digits>.png``.
        """
        self._check_writable()
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        path = self.path / "previews" / f"{name}-{step:08d}.png"
        write_whole(path, buffer.getvalue())
        self._board.picture(name, picture, step)
        return path

    def close(self) -> None:
        """Finish TensorBoard's file and let go of the lock; closing twice is fine."""
        self._board.close()
        if self._metrics is not None:
            os.close(self._metrics)
        if self._lock is not None:
            self._lock.release()
        self._metrics = self._lock = None

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Refused) and self._is_new and self.status() is None:
            self._take_back()
        self.close()

    def _take_back(self) -> None:
        """Remove what ``create`` wrote, so that the same command, corrected, starts the run; the lock's file stays."""
        self.config_path.unlink()
        (self.path / "environment.json").unlink()

    def _check_writable(self) -> None:
        assert self._lock is not None, "this run is only viewed; open it to write"

    def _write_json(self, name: str, value: Any) -> None:
        write_whole(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise BadData(f"{path}: cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise BadData(f"{path}: must hold a JSON object")
        return value
