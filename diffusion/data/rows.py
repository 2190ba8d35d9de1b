"""What a manifest says of the samples of one tar, as arrays: what reading them takes, and no more."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from jaxtyping import Int64
    from numpy import ndarray

    from .shard_set import ShardSet
    from .shards import TarStats

SHA256_BYTES = 32


@dataclass(frozen=True)
class Rows:
    """The samples of a tar, in its order: some 80 bytes each."""

    offsets: Int64[ndarray, "n"]
    num_bytes: Int64[ndarray, "n"]
    labels: Int64[ndarray, "n"]
    """-1: none"""
    digests: ndarray
    """[n] of 32 bytes (dtype V32): the sha256 of each"""
    keys: pa.ChunkedArray
    """strings, left as Arrow has them: training does not look at them"""


def read_rows(shard_set: ShardSet, tar: TarStats) -> Rows:
    """Read the rows of a tar. Raises ValueError, naming it, if they are missing or not those of its samples."""
    try:
        table = shard_set.manifest(tar, ["offset", "num_bytes", "label", "sha256", "key"])
        offsets, num_bytes, labels = (table[name].to_numpy() for name in ("offset", "num_bytes", "label"))
        digests = bytes.fromhex("".join(table["sha256"].to_pylist()))
        if len(offsets) != tar.num_samples or len(digests) != tar.num_samples * SHA256_BYTES:
            raise ValueError(f"{len(offsets)} rows for {tar.num_samples} samples")
        if (np.diff(offsets) < 0).any():
            raise ValueError("its rows are not in the order of the tar")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as err:
        raise ValueError(
            f"the manifest of shard {shard_set.folder.uri}/{tar.name} cannot be used ({err}); restore it, or delete "
            f"the shard set and make it again, then run the same command to continue"
        ) from err
    return Rows(offsets, num_bytes, labels, np.frombuffer(digests, f"V{SHA256_BYTES}"), table["key"])


class Manifests:
    """The rows of those tars of a split that were asked for last. Safe to use from several threads."""

    def __init__(self, shard_set: ShardSet, tars: list[TarStats]) -> None:
        self.limit = 1
        """of how many tars the rows are kept"""
        self._shard_set, self._tars = shard_set, tars
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, nth: int) -> Rows:
        """The rows of the nth tar. Raises ValueError, as `read_rows`."""
        with self._lock:
            rows = self._kept.get(nth)
        rows = rows or read_rows(self._shard_set, self._tars[nth])  # two threads may read it twice, side by side
        with self._lock:
            self._kept[nth] = rows
            self._kept.move_to_end(nth)
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return rows
