"""Blocks of tars of an object store, kept on a local disk that the workers of a node share."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from pathlib import Path

    from ..files import Folder
    from .shards import TarStats

BLOCK_BYTES = 4 << 20
"""what an object store serves well in one request, and little to read in vain at either end of a window"""
TRIMS = 16
"""how often the cache is looked over while it fills once: it may grow past its limit by 1/16 for each worker"""


class BlockCache:
    """Aligned blocks of tars in a local folder, at most about `max_bytes`, those least recently used dropped first.

    A block is named by its tar's sha256 and its number, so sets that share a tar share its blocks, and a tar that was
    made anew has others. Blocks appear by renaming and may vanish at any time: any number of processes may use the
    folder. Nothing is verified here but lengths: whoever knows the samples checks them, and drops what is damaged.
    """

    def __init__(self, folder: Path, max_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        self.folder, self.max_bytes, self.block_bytes = folder, max_bytes, block_bytes
        self._written = 0  # bytes since the last trim

    def read_range(self, source: Folder, tar: TarStats, offset: int, num_bytes: int) -> bytes:
        """As `source.read_range(tar.name, …)`: by the blocks that are here, and the others fetched and kept."""
        numbers = range(offset // self.block_bytes, -(-(offset + num_bytes) // self.block_bytes))
        blocks = {number: self._load(tar, number) for number in numbers}
        for missing, group in groupby(numbers, key=lambda number: blocks[number] is None):
            if missing:
                run = list(group)
                start = run[0] * self.block_bytes
                data = source.read_range(tar.name, start, len(run) * self.block_bytes)
                for number in run:
                    blocks[number] = data[number * self.block_bytes - start :][: self.block_bytes]
                    self._store(tar, number, blocks[number] or b"")
        whole = b"".join(block or b"" for block in blocks.values())
        skip = offset - numbers.start * self.block_bytes
        return whole[skip : skip + num_bytes]

    def drop(self, tar: TarStats, offset: int, num_bytes: int) -> None:
        """Forget the blocks that hold these bytes."""
        for number in range(offset // self.block_bytes, -(-(offset + num_bytes) // self.block_bytes)):
            self._path(tar, number).unlink(missing_ok=True)

    def _path(self, tar: TarStats, number: int) -> Path:
        return self.folder / tar.sha256[:2] / f"{tar.sha256}-{self.block_bytes}-{number}"

    def _length(self, tar: TarStats, number: int) -> int:
        return max(0, min(self.block_bytes, tar.num_bytes - number * self.block_bytes))

    def _load(self, tar: TarStats, number: int) -> bytes | None:
        path = self._path(tar, number)
        try:
            data = path.read_bytes()
            os.utime(path)  # now: what is used is dropped last, also where the disk keeps no access times
        except OSError:
            return None
        return data if len(data) == self._length(tar, number) else None

    def _store(self, tar: TarStats, number: int, data: bytes) -> None:
        """Keep a whole block, if the disk lets us: a run must not fail for want of a cache."""
        if len(data) != self._length(tar, number):
            return
        path = self._path(tar, number)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        self._written += len(data)
        if self._written * TRIMS >= self.max_bytes:
            self._written = 0
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest blocks over the limit, or over half of what the disk would have free without us."""
        found = []
        for path in self.folder.glob("*/*"):  # temporary ones too, that a killed worker left
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        limit = min(self.max_bytes, (total + shutil.disk_usage(self.folder).free) // 2) if found else 0
        for _, size, path in sorted(found):
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= size
