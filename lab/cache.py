"""Finished tensors on disk: found by the hash of what they were made of, read through memory maps, never stale.

    <folder>/                              of one encoder or codec with its settings: another one looks elsewhere
        <SHA-256 of the file>.safetensors  a shard: some entries, never changed once it is there

A shard appears by rename and is called by its own hash, so several processes may write at once, and one that is torn
or has a flipped bit is found when the cache is opened. It is then removed, and what it held is computed again.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lab.errors import Refused
from lab.storage import write_whole

log = logging.getLogger(__name__)

SHARD = 1024  # entries, at most
DIGEST = 16  # bytes of a key's hash
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Shard:
    """An open shard: its memory map, and where each entry begins (n + 1,)."""

    file: Any
    bounds: Tensor

    def entry(self, number: int) -> Tensor:
        begin, end = self.bounds[number : number + 2].tolist()
        rows: Tensor = self.file.get_slice("rows")[begin:end].clone()
        return rows


class TensorCache:
    """A tensor (l, ...) for each key, in a folder of their own; l may differ, the other sides not.

    Args:
        folder: named by the identity of what made them; need not be there yet.

    Raises:
        Refused: a file lies there that is no shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[_Shard] = []
        self._where: dict[bytes, tuple[int, int]] = {}
        self._pending: dict[bytes, Tensor] = {}
        for path in sorted(folder.glob("[!.]*")):
            if path.suffix != SUFFIX:
                raise Refused(f"{path} is no shard of a cache and is not read: delete it")
            self._take_in(path)

    def __len__(self) -> int:
        return len(self._where) + len(self._pending)

    def __contains__(self, key: str) -> bool:
        name = _name(key)
        return name in self._pending or name in self._where

    def get(self, key: str) -> Tensor | None:
        """Give the entry of a key, or ``None`` where it is not here."""
        name = _name(key)
        if name in self._pending:
            return self._pending[name]
        if name not in self._where:
            return None
        shard, number = self._where[name]
        return self._shards[shard].entry(number)

    def add(self, entries: Mapping[str, Tensor]) -> None:
        """Keep entries.

        They are written when a quarter as many wait as have been written, so that a few shards hold many of them;
        ``flush`` writes what waits.

        Raises:
            StorageFailed: the disk is full or refuses.
        """
        self._pending |= {_name(key): entry for key, entry in entries.items()}
        if len(self._pending) >= min(SHARD, max(SHARD // 16, len(self._where) // 4)):
            self.flush()

    def flush(self) -> None:
        """Write what waits, and flush it to the disk.

        Raises:
            StorageFailed: the disk is full or refuses.
        """
        waiting = list(self._pending.items())
        for begin in range(0, len(waiting), SHARD):
            data = _packed(waiting[begin : begin + SHARD])
            path = self.folder / f"{hashlib.sha256(data).hexdigest()}{SUFFIX}"
            write_whole(path, data)
            self._take_in(path)
        self._pending.clear()

    def _take_in(self, path: Path) -> None:
        """Open a shard and note what it holds, or remove it where it is not what was written."""
        try:
            with path.open("rb") as raw:
                if hashlib.file_digest(raw, "sha256").hexdigest() != path.stem:
                    raise ValueError("another hash than its name")
            file: Any = safetensors.safe_open(path, framework="pt")
            keys, bounds = file.get_tensor("keys").numpy(), file.get_tensor("bounds")
            file.get_slice("rows")  # a shard of an earlier version has none
        except FileNotFoundError:  # another process has just removed it
            return
        except (ValueError, safetensors.SafetensorError) as error:
            log.warning(
                "%s is not what was written (%s): it is removed, and what it held is computed again", path, error
            )
            path.unlink(missing_ok=True)
            return
        self._where |= {key.tobytes(): (len(self._shards), number) for number, key in enumerate(keys)}
        self._shards.append(_Shard(file, bounds))


def _packed(items: Iterable[tuple[bytes, Tensor]]) -> bytes:
    names, entries = zip(*items, strict=True)
    lengths = torch.tensor([0, *(len(entry) for entry in entries)])
    return safetensors.torch.save(
        {
            "keys": torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8).view(-1, DIGEST),
            "bounds": lengths.cumsum(0),
            "rows": torch.cat(entries),
        }
    )


def _name(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()
