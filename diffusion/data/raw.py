"""Samples as they lie in the tars, fetched by few large reads and each checked by its sha256."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .codecs import Rejected
from .rows import Manifests, Rows, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int64
    from numpy import ndarray

    from .block_cache import BlockCache
    from .shard_set import ShardSet
    from .shards import TarStats

MAX_RANGE = 8 << 20  # bytes a read: an object store's best; what a read holds beside the samples that are cut of it
MAX_GAP = 64 << 10  # bytes: reading over them is cheaper than another request
MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"\x93NUMPY": "npy"}
"""how a file begins -> its extension, which the manifest does not keep: an adopted set may mix them"""


class Raw(NamedTuple):
    """A picture's file and its label, -1 for none."""

    data: bytes
    label: int


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
        """The samples at these positions. Raises ValueError, naming the tar, if one is not what the manifest says."""
        positions = np.unique(positions)
        tars = np.searchsorted(self._ends, positions, side="right")
        found: dict[int, Raw] = {}
        for nth in np.unique(tars).tolist():
            here = positions[tars == nth]
            rows, indices = self.manifests[nth], here - (int(self._ends[nth]) - self.shard_sizes[nth])
            samples = self._read(self.tars[nth], rows, indices)
            found.update(zip(here.tolist(), map(Raw, samples, rows.labels[indices].tolist()), strict=True))
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

    def blame(self, position: int, err: Exception) -> ValueError:
        """The error of a sample that cannot be used."""
        return not_as_said(self.shard_set, self.tars[int(np.searchsorted(self._ends, position, side="right"))], err)

    def _read(self, tar: TarStats, rows: Rows, indices: Int64[ndarray, "n"]) -> list[bytes]:
        """Samples of one tar, by index."""
        found: list[bytes] = []
        try:
            for part in ranges(rows.offsets[indices], rows.num_bytes[indices]):
                found += self._read_range(tar, rows, indices[part])
        except (FileNotFoundError, Rejected) as err:
            raise not_as_said(self.shard_set, tar, err) from err
        return found

    def _read_range(self, tar: TarStats, rows: Rows, indices: Int64[ndarray, "n"]) -> list[bytes]:
        """Samples that one read holds. Raises Rejected. A cached block that is damaged is fetched once more."""
        start = int(rows.offsets[indices[0]])
        length = int(rows.offsets[indices[-1]] + rows.num_bytes[indices[-1]]) - start
        if self.cache is None:
            return cut(self.shard_set.folder.read_range(tar.name, start, length), start, rows, indices)
        try:
            return cut(self.cache.read_range(self.shard_set.folder, tar, start, length), start, rows, indices)
        except Rejected:
            self.cache.drop(tar, start, length)
            return cut(self.cache.read_range(self.shard_set.folder, tar, start, length), start, rows, indices)


def ranges(offsets: Int64[ndarray, "n"], num_bytes: Int64[ndarray, "n"]) -> list[slice]:
    """Which neighbours among samples in the order of their offsets are read together.

    As many as lie within MAX_RANGE bytes without a gap of over MAX_GAP; a sample that is larger stands alone.
    """
    starts, stops = offsets.tolist(), (offsets + num_bytes).tolist()
    cuts = [0]
    for i in range(1, len(starts)):
        if stops[i] - starts[cuts[-1]] > MAX_RANGE or starts[i] - stops[i - 1] > MAX_GAP:
            cuts.append(i)
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(starts)], strict=True)]


def cut(data: bytes, start: int, rows: Rows, indices: Int64[ndarray, "n"], check: bool = True) -> list[bytes]:
    """The samples in what was read from `start` of their tar. Raises Rejected if one is not what its row says."""
    places = zip((rows.offsets[indices] - start).tolist(), rows.num_bytes[indices].tolist(), strict=True)
    samples = [data[offset : offset + length] for offset, length in places]
    if check:
        sha256 = hashlib.sha256
        found = b"".join([sha256(sample).digest() for sample in samples])
        if found != rows.digests[indices].tobytes():
            wrong = np.flatnonzero(np.frombuffer(found, rows.digests.dtype) != rows.digests[indices])
            raise Rejected("changed", f"sample {indices[wrong[0]]} does not have the sha256 of the manifest")
    return samples


def raw_samples(shard_set: ShardSet, tar: TarStats, check: bool = True) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample of a tar, in order: its key, and its bytes by extension, as stock webdataset would give them.

    By the manifest's offsets, so no header is parsed: there is the picture and, where the sample has a label, `cls`;
    what else an adopted tar may hold is passed over. Reads 8 MiB at a time. Raises ValueError, naming the tar, if a
    sample is not what the manifest says; `check` = False believes it.
    """
    rows = read_rows(shard_set, tar)
    keys = shard_set.manifest(tar, ["key"])["key"].to_pylist()
    try:
        for part in ranges(rows.offsets, rows.num_bytes):
            start, length = int(rows.offsets[part.start]), int((rows.offsets + rows.num_bytes)[part.stop - 1])
            data = shard_set.folder.read_range(tar.name, start, length - start)
            samples = cut(data, start, rows, np.arange(part.start, part.stop), check)
            for key, sample, label in zip(keys[part], samples, rows.labels[part].tolist(), strict=True):
                named = {extension_of(sample): sample}
                if label >= 0:
                    named["cls"] = b"%d" % label
                yield key, named
    except (FileNotFoundError, Rejected) as err:
        raise not_as_said(shard_set, tar, err) from err


def extension_of(data: bytes) -> str:
    """The extension of a picture's file, by how it begins. Raises Rejected for what is no picture."""
    for magic, extension in MAGIC.items():
        if data.startswith(magic):
            return extension
    raise Rejected("unknown_format", f"not one of {', '.join(MAGIC.values())}")


def not_as_said(shard_set: ShardSet, tar: TarStats, err: Exception) -> ValueError:
    """The error of a tar that its manifest does not describe, with what to do."""
    return ValueError(
        f"shard {shard_set.folder.uri}/{tar.name} is not what its manifest says ({err}); restore it, "
        f"or delete the shard set and make it again, then run the same command to continue"
    )
