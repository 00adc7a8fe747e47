"""Finished states of captions on disk: found by the caption's hash, read through memory maps, never stale.

    data/cache/text/<identity>/            of one encoder with its settings: another one looks elsewhere
        <SHA-256 of the file>.safetensors  a shard: the states of some captions, never changed once it is there

A shard appears by rename and is called by its own hash, so several processes may write at once, and one that is torn
or has a flipped bit is found when the cache is opened. It is then removed, and its captions are encoded again.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lab.errors import Refused
from lab.storage import write_whole

log = logging.getLogger(__name__)

SHARD = 1024  # captions, at most
DIGEST = 16  # bytes of a caption's hash
SUFFIX = ".safetensors"


class Entry(NamedTuple):
    """The states of one caption.

    Attributes:
        tokens: (l, d), as many as the caption has.
        pooled: (p,).
    """

    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class _Shard:
    """An open shard: its memory map, and where each caption's tokens begin (n + 1,)."""

    file: Any
    bounds: Tensor

    def entry(self, row: int) -> Entry:
        begin, end = self.bounds[row : row + 2].tolist()
        return Entry(
            self.file.get_slice("tokens")[begin:end].clone(), self.file.get_slice("pooled")[row : row + 1][0].clone()
        )


class TextCache:
    """The states of captions, in a folder of their own.

    Args:
        folder: named by the identity of the encoder with its settings; need not be there yet.

    Raises:
        Refused: a file lies there that is no shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[_Shard] = []
        self._where: dict[bytes, tuple[int, int]] = {}
        self._pending: dict[bytes, Entry] = {}
        for path in sorted(folder.glob("[!.]*")):
            if path.suffix != SUFFIX:
                raise Refused(f"{path} is no shard of a text cache and is not read: delete it")
            self._take_in(path)

    def __len__(self) -> int:
        return len(self._where) + len(self._pending)

    def __contains__(self, caption: str) -> bool:
        key = _key(caption)
        return key in self._pending or key in self._where

    def get(self, caption: str) -> Entry | None:
        """Give the states of a caption, or ``None`` where they are not here."""
        key = _key(caption)
        if key in self._pending:
            return self._pending[key]
        if key not in self._where:
            return None
        shard, row = self._where[key]
        return self._shards[shard].entry(row)

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Keep the states of captions.

        They are written when a quarter as many wait as have been written, so that a few shards hold many captions;
        ``flush`` writes what waits.

        Raises:
            StorageFailed: the disk is full or refuses.
        """
        self._pending |= {_key(caption): entry for caption, entry in entries.items()}
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
        except FileNotFoundError:  # another process has just removed it
            return
        except (ValueError, safetensors.SafetensorError) as error:
            log.warning(
                "%s is not what was written (%s): it is removed, and its captions are encoded again", path, error
            )
            path.unlink(missing_ok=True)
            return
        self._where |= {key.tobytes(): (len(self._shards), row) for row, key in enumerate(keys)}
        self._shards.append(_Shard(file, bounds))


def _packed(items: Iterable[tuple[bytes, Entry]]) -> bytes:
    keys, entries = zip(*items, strict=True)
    lengths = torch.tensor([0, *(len(entry.tokens) for entry in entries)])
    return safetensors.torch.save(
        {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, DIGEST),
            "bounds": lengths.cumsum(0),
            "tokens": torch.cat([entry.tokens for entry in entries]),
            "pooled": torch.stack([entry.pooled for entry in entries]),
        }
    )


def _key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()
