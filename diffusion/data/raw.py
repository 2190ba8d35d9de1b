"""Samples as they lie in the tars, fetched by few large reads and each checked by its sha256."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .images import Rejected
from .pixels import extension_of
from .rows import Manifests, Rows, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int64
    from numpy import ndarray

    from ..files import Folder
    from .block_cache import BlockCache
    from .shard_set import ShardSet
    from .shards import TarStats

LOCAL_RANGE = 1 << 20  # bytes a read at most: what a core's cache holds is cut up a fifth faster than 8 MiB
REMOTE_RANGE = 8 << 20  # an object store's best
MAX_GAP = 64 << 10  # bytes: reading over them is cheaper than another request


class Raw(NamedTuple):
    """A picture's file as it was read, and what the manifest says of it."""

    data: bytes
    label: int
    """-1: none"""
    sha256: bytes


class RawReader:
    """Raw samples of one split by position, 0 … N-1 over its tars laid end to end. Safe to use from several threads."""

    def __init__(self, shard_set: ShardSet, split: str = "train", cache: BlockCache | None = None) -> None:
        self.shard_set, self.tars, self.cache = shard_set, shard_set.split(split), cache
        self.shard_sizes = [tar.num_samples for tar in self.tars]
        self.manifests = Manifests(shard_set, self.tars)
        self._ends = np.cumsum(self.shard_sizes)

    @property
    def sample_bytes(self) -> float:
        """What a sample takes in the tars, in the mean: with its headers, so no less than it takes in memory."""
        return sum(tar.num_bytes for tar in self.tars) / sum(self.shard_sizes)

    def fetch(self, positions: Int64[ndarray, "n"]) -> dict[int, Raw]:
        """The samples at these positions, not checked yet. Raises ValueError, naming the tar, if one is missing."""
        positions = np.unique(positions)
        tars = np.searchsorted(self._ends, positions, side="right")
        found: dict[int, Raw] = {}
        for nth in np.unique(tars).tolist():
            here = positions[tars == nth]
            rows, indices = self.manifests[nth], here - self._start(nth)
            labels, digests = rows.labels[indices].tolist(), rows.digests[indices].tolist()
            samples = self._read(self.tars[nth], rows, indices)
            found.update(zip(here.tolist(), map(Raw, samples, labels, digests), strict=True))
        return found

    def keys(self, positions: Int64[ndarray, "n"]) -> list[str]:
        """Their names in the tars. For a few: each tar's are read anew."""
        found: dict[int, str] = {}
        tars = np.searchsorted(self._ends, positions, side="right")
        for nth in np.unique(tars).tolist():
            keys = self.shard_set.manifest(self.tars[nth], ["key"])["key"]
            first = int(self._ends[nth]) - self.shard_sizes[nth]
            found |= {place: keys[place - first].as_py() for place in positions[tars == nth].tolist()}
        return [found[place] for place in positions.tolist()]

    def checked(self, position: int, raw: Raw) -> bytes:
        """The file, if it has its sha256. A damaged block of the cache is dropped, and fetched once more.

        Raises ValueError, naming the tar, if the sample is not what the manifest says. For the thread that decodes:
        when several read and hash at once, they spend as much time passing the interpreter's lock around.
        """
        if hashlib.sha256(raw.data).digest() == raw.sha256:
            return raw.data
        nth = self._tar_of(position)
        tar, rows, index = self.tars[nth], self.manifests[nth], position - self._start(nth)
        for _ in range(0 if self.cache is None else 2):  # another sample may have mended the block already
            (data,) = self._read(tar, rows, np.array([index]))
            if hashlib.sha256(data).digest() == raw.sha256:
                return data
            self._forget(tar, int(rows.offsets[index]), int(rows.num_bytes[index]))
        raise not_as_said(self.shard_set, tar, changed(index))

    def blame(self, position: int, err: Exception) -> ValueError:
        """The error of a sample that cannot be used."""
        return not_as_said(self.shard_set, self.tars[self._tar_of(position)], err)

    def _tar_of(self, position: int) -> int:
        return int(np.searchsorted(self._ends, position, side="right"))

    def _start(self, nth: int) -> int:
        return int(self._ends[nth]) - self.shard_sizes[nth]

    def _read(self, tar: TarStats, rows: Rows, indices: Int64[ndarray, "n"]) -> list[bytes]:
        """Samples of one tar, by index, by as few reads as can be; shorter where the tar is."""
        found: list[bytes] = []
        try:
            for part in ranges(rows.offsets[indices], rows.num_bytes[indices], range_bytes(self.shard_set.folder)):
                start, length = span(rows, indices[part])
                found += cut(self._read_range(tar, start, length), start, rows, indices[part])
        except FileNotFoundError as err:
            raise not_as_said(self.shard_set, tar, err) from err
        return found

    def _forget(self, tar: TarStats, start: int, length: int) -> None:
        if self.cache is not None:
            self.cache.drop(tar, start, length)

    def _read_range(self, tar: TarStats, start: int, length: int) -> bytes:
        if self.cache is None:
            return self.shard_set.folder.read_range(tar.name, start, length)
        return self.cache.read_range(self.shard_set.folder, tar, start, length)


def range_bytes(folder: Folder) -> int:
    """The most to be read at once."""
    return LOCAL_RANGE if folder.is_local else REMOTE_RANGE


def ranges(offsets: Int64[ndarray, "n"], num_bytes: Int64[ndarray, "n"], most: int) -> list[slice]:
    """Which neighbours among samples in the order of their offsets are read together.

    As many as lie within `most` bytes without a gap of over MAX_GAP; a sample that is larger stands alone.
    """
    starts, stops = offsets.tolist(), (offsets + num_bytes).tolist()
    cuts = [0]
    for i in range(1, len(starts)):
        if stops[i] - starts[cuts[-1]] > most or starts[i] - stops[i - 1] > MAX_GAP:
            cuts.append(i)
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(starts)], strict=True)]


def span(rows: Rows, indices: Int64[ndarray, "n"]) -> tuple[int, int]:
    """Where in their tar samples in order begin, and how many bytes they and what is between them take."""
    start = int(rows.offsets[indices[0]])
    return start, int(rows.offsets[indices[-1]] + rows.num_bytes[indices[-1]]) - start


def cut(data: bytes, start: int, rows: Rows, indices: Int64[ndarray, "n"]) -> list[bytes]:
    """The samples in what was read from `start` of their tar. Copies, so that each can be dropped when it is used."""
    places = zip((rows.offsets[indices] - start).tolist(), rows.num_bytes[indices].tolist(), strict=True)
    return [data[offset : offset + length] for offset, length in places]


def raw_samples(shard_set: ShardSet, tar: TarStats, check: bool = True) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample of a tar, in order: its key, and its bytes by extension, as stock webdataset would give them.

    By the manifest's offsets, so no header is parsed: there is the picture and, where the sample has a label, `cls`;
    what else an adopted tar may hold is passed over. Raises ValueError, naming the tar, if a sample is not what the
    manifest says; `check` = False believes it.
    """
    rows = read_rows(shard_set, tar)
    keys = rows.keys.to_pylist()
    try:
        for part in ranges(rows.offsets, rows.num_bytes, range_bytes(shard_set.folder)):
            start, length = span(rows, np.arange(part.start, part.stop))
            data = shard_set.folder.read_range(tar.name, start, length)
            offsets, sizes = (rows.offsets[part] - start).tolist(), rows.num_bytes[part].tolist()
            labels, digests = rows.labels[part].tolist(), rows.digests[part].tolist()
            said = zip(offsets, sizes, keys[part], labels, digests, strict=True)
            # One at a time, while it is in the processor's cache: cutting all of 3 KB first takes three times as long.
            for index, (offset, num_bytes, key, label, digest) in enumerate(said, part.start):
                sample = data[offset : offset + num_bytes]
                if check and hashlib.sha256(sample).digest() != digest:
                    raise changed(index)
                picture = {extension_of(sample): sample}
                yield key, picture if label < 0 else {**picture, "cls": b"%d" % label}
    except (FileNotFoundError, Rejected) as err:
        raise not_as_said(shard_set, tar, err) from err


def changed(index: int) -> Rejected:
    """What is wrong with a sample that is not the one that the manifest knows."""
    return Rejected("changed", f"sample {index} does not have the sha256 of the manifest")


def not_as_said(shard_set: ShardSet, tar: TarStats, err: Exception) -> ValueError:
    """The error of a tar that its manifest does not describe, with what to do."""
    return ValueError(
        f"shard {shard_set.folder.uri}/{tar.name} is not what its manifest says ({err}); restore it, "
        f"or delete the shard set and make it again, then run the same command to continue"
    )
