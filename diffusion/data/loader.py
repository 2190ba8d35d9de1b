"""Streaming a shard set in the order that `order` says, checked against its manifest, decoded ahead of use."""

from __future__ import annotations

import hashlib
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from .images import Rejected, decode
from .order import EpochOrder, OrderConfig, lanes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from .shard_set import ShardSet

CACHE_BYTES = 1 << 30  # decoded sets up to this size are kept in memory, in every worker
MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"\x93NUMPY": "npy"}
"""how a file begins -> its extension, which the manifest does not keep: an adopted set may mix them"""
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """A worker's share of one global batch, lane after lane."""

    step: int
    """of the run, from 0"""
    lanes: list[int]
    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, "b"] | None


class SampleReader:
    """Samples of one split by position, 0 … N-1 over its tars laid end to end; each checked by its sha256."""

    def __init__(self, shard_set: ShardSet, split: str = "train", cache_bytes: int = CACHE_BYTES) -> None:
        self.shard_set = shard_set
        self.tars = shard_set.split(split)
        self.shard_sizes = [tar.num_samples for tar in self.tars]
        self._ends = np.cumsum(self.shard_sizes)
        self._manifests: dict[int, dict[str, list[int | str]]] = {}
        decoded_bytes = sum(self.shard_sizes) * shard_set.channels * shard_set.image_size**2
        self._keep = decoded_bytes <= cache_bytes
        self._kept: dict[int, tuple[UInt8[ndarray, "c h w"], int]] = {}

    def read(self, positions: Iterable[int]) -> tuple[UInt8[ndarray, "n c h w"], Int64[ndarray, "n"]]:
        """Images and labels (-1: none). Raises ValueError, naming the tar, if one is not what the manifest says."""
        samples = [self._sample(int(position)) for position in positions]
        return np.stack([image for image, _ in samples]), np.array([label for _, label in samples], dtype=np.int64)

    def _sample(self, position: int) -> tuple[UInt8[ndarray, "c h w"], int]:
        sample = self._kept.get(position) or self._fetch(position)
        if self._keep:
            self._kept[position] = sample
        return sample

    def _fetch(self, position: int) -> tuple[UInt8[ndarray, "c h w"], int]:
        nth = int(np.searchsorted(self._ends, position, side="right"))
        tar, index = self.tars[nth], position - (int(self._ends[nth]) - self.shard_sizes[nth])
        if nth not in self._manifests:
            self._manifests[nth] = self.shard_set.manifest(tar, ["offset", "num_bytes", "label", "sha256"]).to_pydict()
        row = {name: column[index] for name, column in self._manifests[nth].items()}
        try:
            data = self.shard_set.folder.read_range(tar.name, int(row["offset"]), int(row["num_bytes"]))
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise Rejected("changed", f"sample {index} does not have the sha256 of the manifest")
            return self._decode(data), int(row["label"])
        except (FileNotFoundError, Rejected) as err:
            raise ValueError(
                f"shard {self.shard_set.folder.uri}/{tar.name} is not what its manifest says ({err}); restore it, "
                f"or delete the shard set and make it again, then run the same command to continue"
            ) from err

    def _decode(self, data: bytes) -> UInt8[ndarray, "c h w"]:
        """Raises Rejected if it is no picture, or not one of the set's size and channels."""
        extension = next((extension for magic, extension in MAGIC.items() if data.startswith(magic)), None)
        if extension is None:
            raise Rejected("unknown_format", f"not one of {', '.join(MAGIC.values())}")
        pixels = decode(data, extension)
        wanted = (self.shard_set.image_size, self.shard_set.image_size, self.shard_set.channels)
        if pixels.shape != wanted:
            raise Rejected("wrong_size", f"a picture of shape {pixels.shape}, where the set's are {wanted}")
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def batches(
    reader: SampleReader, config: OrderConfig, start_step: int, stop_step: int, rank: int = 0, num_workers: int = 1
) -> Iterator[Batch]:
    """This worker's share of global batches start_step … stop_step-1. A resume is a seek: it costs nothing."""
    lanes = lanes_of(rank, num_workers, config.num_lanes)
    order = EpochOrder(reader.shard_sizes, config, epoch=0)
    has_labels = bool(reader.shard_set.classes)
    for step in range(start_step, stop_step):
        epoch, step_of_epoch = divmod(step, order.num_steps)
        if epoch != order.epoch:
            order = EpochOrder(reader.shard_sizes, config, epoch)
        images, labels = reader.read(np.concatenate([order.lane_batch(lane, step_of_epoch) for lane in lanes]))
        yield Batch(step, lanes, torch.from_numpy(images), torch.from_numpy(labels) if has_labels else None)


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The same items, made by a thread up to `depth` ahead; what it raises is raised here."""
    done = object()
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(done)
        except BaseException as err:  # noqa: BLE001 - handed over to the consumer, whole
            put(err)

    threading.Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
