"""Samples of a shard set as pixels, by position: read, checked, decoded by a few threads, and kept if they are few."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ..patience import patiently
from .block_cache import BlockCache
from .images import Rejected
from .pixels import decode_into
from .raw import RawReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Int64, UInt8
    from numpy import ndarray

    from .raw import Raw
    from .shard_set import ShardSet

    Samples = tuple[UInt8[ndarray, "n c h w"], Int64[ndarray, "n"]]

Keep = Literal["auto", "on", "off"]
CHUNK = 1024  # samples whose files `read` holds at once
MIN_TO_SHARE = 16  # pictures; a thread has to be worth its start


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How samples are read. Changes nothing in what is read."""

    decode_threads: int = 4
    """that decode pictures, in every worker; no more than it has CPUs"""
    read_threads: int = 4
    """that fetch and check what comes next, in every worker"""
    ahead_bytes: int = 64 << 20
    """files held beyond one window of each lane, in every worker: lanes a worker x shuffle_window x bytes a sample"""
    keep_decoded: Keep = "auto"
    """keep all decoded pictures in memory, in every worker: on, off, or auto: if they take at most keep_bytes"""
    keep_bytes: int = 1 << 30
    """decoded pictures up to this size are kept by auto"""
    block_cache: str = "~/.cache/ray-ddpm/blocks"
    """folder on a local disk, shared by the workers of a node, for what is read of an object store"""
    block_cache_bytes: int = 10 << 30
    """the most that this folder may take, and never over half of what its disk has free; 0: no such folder"""

    def __post_init__(self) -> None:
        for name in ("decode_threads", "read_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("ahead_bytes", "keep_bytes", "block_cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.keep_decoded not in get_args(Keep):
            raise ValueError(f"keep_decoded must be one of {', '.join(get_args(Keep))}, got {self.keep_decoded!r}")


class Kept:
    """Decoded samples in memory, each in its place."""

    def __init__(self, num_samples: int, shape: tuple[int, int, int]) -> None:
        # Memory that is not yet written to takes none.
        self.images: UInt8[ndarray, "N h w c"] = np.empty((num_samples, *shape), np.uint8)
        self.labels: Int64[ndarray, "N"] = np.empty(num_samples, np.int64)
        self.filled: Bool[ndarray, "N"] = np.zeros(num_samples, bool)


class SampleReader:
    """Samples of one split by position, 0 … N-1 over its tars laid end to end; each checked by its sha256.

    Images are [n c h w] with the channels of a pixel side by side in memory, as the codecs write them: who needs them
    apart lays them apart while it turns bytes into floats, and a GPU does that in no time.
    """

    def __init__(self, shard_set: ShardSet, split: str = "train", config: LoadConfig = LoadConfig()) -> None:
        self.shard_set, self.config = shard_set, config
        cached = bool(config.block_cache_bytes) and not shard_set.folder.is_local
        folder = Path(config.block_cache).expanduser()
        self.raw = RawReader(shard_set, split, BlockCache(folder, config.block_cache_bytes) if cached else None)
        self.shard_sizes = self.raw.shard_sizes
        self.shape = (shard_set.image_size, shard_set.image_size, shard_set.channels)
        num_samples = sum(self.shard_sizes)
        is_small = num_samples * int(np.prod(self.shape)) <= config.keep_bytes
        keep = config.keep_decoded == "on" or (config.keep_decoded == "auto" and is_small)
        self._kept = Kept(num_samples, self.shape) if keep else None

    def read(self, positions: Iterable[int]) -> Samples:
        """Images and labels (-1: none). Raises ValueError, naming the tar, if one is not what the manifest says."""
        wanted = np.fromiter(positions, np.int64)
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        with self.decoders() as pool:
            parts = [self.decode(chunk, self.fetch(chunk), pool) for chunk in chunks or [wanted]]
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def fetch(self, positions: Int64[ndarray, "n"]) -> dict[int, Raw]:
        """The files of those samples that are not kept in memory, to be checked by `decode`. Raises ValueError.

        A storage that fails is asked again for a minute.
        """
        wanted = positions if self._kept is None else positions[~self._kept.filled[positions]]
        return patiently(lambda: self.raw.fetch(wanted))

    def decode(self, positions: Int64[ndarray, "n"], raws: dict[int, Raw], pool: ThreadPoolExecutor) -> Samples:
        """The samples at these positions: from memory, or of their files. Raises ValueError, as `read`."""
        if self._kept is None:
            images, labels = self._decode_all(positions.tolist(), raws, pool)
            return images.transpose(0, 3, 1, 2), labels
        kept, new = self._kept, np.unique(positions[~self._kept.filled[positions]])
        if new.size:
            kept.images[new], kept.labels[new] = self._decode_all(new.tolist(), raws, pool)
            kept.filled[new] = True
        return kept.images.take(positions, axis=0).transpose(0, 3, 1, 2), kept.labels.take(positions)

    def decoders(self) -> ThreadPoolExecutor:
        """A pool for `decode`: no threads yet."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return ThreadPoolExecutor(min(self.config.decode_threads, cpus), "decode")

    def _decode_all(
        self, positions: list[int], raws: dict[int, Raw], pool: ThreadPoolExecutor
    ) -> tuple[UInt8[ndarray, "n h w c"], Int64[ndarray, "n"]]:
        """Decode every one of these files, shared out among the threads."""
        images = _off_32(len(positions), *self.shape)

        def decode_some(start: int, stop: int) -> None:
            for position, pixels in zip(positions[start:stop], images[start:stop], strict=True):
                try:
                    decode_into(self.raw.checked(position, raws[position]), pixels)
                except Rejected as err:
                    raise self.raw.blame(position, err) from err

        threads = min(pool._max_workers, -(-len(positions) // MIN_TO_SHARE))
        if threads <= 1:
            decode_some(0, len(positions))  # here: on one CPU, handing over to another thread only costs
        else:
            cuts = [len(positions) * i // threads for i in range(threads + 1)]
            list(pool.map(decode_some, cuts[:-1], cuts[1:]))
        return images, np.array([raws[position].label for position in positions], np.int64)


def _off_32(*shape: int) -> UInt8[ndarray, "..."]:
    """An array that lies 16 bytes off a multiple of 32.

    Rows that lie on one are written by libjpeg-turbo around the cache (non-temporal stores, simd/x86_64/jdcolext-avx2):
    a picture of 64 px takes it a tenth longer.
    """
    num_bytes = int(np.prod(shape))
    memory = np.empty(num_bytes + 32, np.uint8)
    first = (16 - memory.ctypes.data) % 32
    return memory[first : first + num_bytes].reshape(shape)
