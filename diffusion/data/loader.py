"""Batches of training: the samples that `order` says, read ahead and decoded, as tensors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .order import EpochOrder, lanes_of, stretches
from .prefetch import Prefetch
from .read_ahead import ReadAhead
from .reader import LoadConfig, SampleReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from jaxtyping import Int64, UInt8
    from torch import Tensor

    from .order import OrderConfig

__all__ = ["Batch", "LoadConfig", "Prefetch", "SampleReader", "batches", "keys_of_step"]

STRETCH_BYTES = 1 << 20  # small windows are fetched several at a time, since every read has a price of its own


@dataclass(frozen=True)
class Batch:
    """A worker's share of one global batch, lane after lane."""

    step: int
    """of the run, from 0"""
    lanes: list[int]
    images: UInt8[Tensor, "b c h w"]
    """channels last in memory (torch.channels_last)"""
    labels: Int64[Tensor, "b"] | None


def batches(
    reader: SampleReader, config: OrderConfig, start_step: int, stop_step: int, rank: int = 0, num_workers: int = 1
) -> Generator[Batch, None, None]:
    """This worker's share of global batches start_step … stop_step-1. A resume is a seek: it costs nothing.

    Raises ValueError, naming the tar, where one is not what the manifest says. Its threads end with it: close it.
    """
    lanes = lanes_of(rank, num_workers, config.num_lanes)
    has_labels = bool(reader.shard_set.classes)
    with _reading(reader, config, lanes, start_step, stop_step) as ahead, reader.decoders() as decoders:
        for step in range(start_step, stop_step):
            images, labels = reader.decode(*ahead.take(config.lane_batch), decoders)
            yield Batch(step, lanes, torch.from_numpy(images), torch.from_numpy(labels) if has_labels else None)


def keys_of_step(reader: SampleReader, config: OrderConfig, step: int) -> list[str]:
    """The keys of a whole global batch, lane after lane, as the tars name them."""
    num_steps = EpochOrder(reader.shard_sizes, config, epoch=0).num_steps
    order = EpochOrder(reader.shard_sizes, config, step // num_steps)
    return reader.raw.keys(
        np.concatenate([order.lane_batch(lane, step % num_steps) for lane in range(config.num_lanes)])
    )


@contextmanager
def _reading(
    reader: SampleReader, config: OrderConfig, lanes: list[int], start_step: int, stop_step: int
) -> Iterator[ReadAhead]:
    """What these lanes see, a window of each in memory and `ahead_bytes` more."""
    num_windows = max(1, int(STRETCH_BYTES / reader.raw.sample_bytes / config.shuffle_window))
    held = len(lanes) * config.shuffle_window * num_windows + int(reader.config.ahead_bytes / reader.raw.sample_bytes)
    reader.raw.manifests.limit = 2 * len(lanes)  # the tar that a lane is in, and the next one
    coming = stretches(reader.shard_sizes, config, lanes, start_step, stop_step, num_windows)
    pool = ThreadPoolExecutor(reader.config.read_threads, "read")
    try:
        yield ReadAhead(coming, reader.fetch, held, pool)
    finally:
        pool.shutdown(cancel_futures=True)
