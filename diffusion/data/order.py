"""Which sample is seen when: pure arithmetic, the same for any number of workers.

In each epoch the shards are permuted and laid end to end, the whole is rolled by a random offset, a remainder
(N mod B, another one each epoch) is left out, and the rest is cut into L equal lanes, each permuted inside
windows. Global batch s takes the next B/L samples of every lane. A worker reads some of the lanes; which
ones changes nothing but where the reading happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..seeding import generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int64
    from numpy import ndarray


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """What the order of the data depends on, beside the data."""

    seed: int = 0
    """of everything that is random in the training run"""
    global_batch: int = 128
    """samples a step, over all workers; a multiple of num_lanes"""
    num_lanes: int = 64
    """virtual streams that the workers share out; the most workers there can be"""
    shuffle_window: int = 1024
    """samples permuted among each other within a lane"""

    def __post_init__(self) -> None:
        if self.num_lanes < 1:
            raise ValueError(f"num_lanes must be at least 1, got {self.num_lanes}")
        if self.global_batch < 1 or self.global_batch % self.num_lanes:
            raise ValueError(
                f"global_batch must be a positive multiple of num_lanes={self.num_lanes}, got {self.global_batch}"
            )
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window must be at least 1, got {self.shuffle_window}")

    @property
    def lane_batch(self) -> int:
        """Samples that each lane gives to a step."""
        return self.global_batch // self.num_lanes


class EpochOrder:
    """The order of one epoch over shards of the given sizes.

    Samples are named by position: 0 … N-1 over all shards laid end to end in their own, unpermuted order.
    Raises ValueError if there are fewer samples than one global batch.
    """

    def __init__(self, shard_sizes: list[int], config: OrderConfig, epoch: int) -> None:
        self.config, self.epoch = config, epoch
        self.num_samples = sum(shard_sizes)
        if self.num_samples < config.global_batch:
            raise ValueError(
                f"global_batch must be at most the number of training samples, {self.num_samples}, "
                f"got {config.global_batch}"
            )
        self.num_steps = self.num_samples // config.global_batch
        self.lane_length = self.num_steps * config.lane_batch
        draw = generator(config.seed, "epoch", step=epoch)
        self._shards = draw.permutation(len(shard_sizes))
        self._roll = int(draw.integers(self.num_samples))
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(sizes)])[:-1]  # position of each shard's first sample
        self._ends = np.cumsum(sizes[self._shards])  # where each permuted shard ends in this epoch's line
        self._starts = self._ends - sizes[self._shards]

    def lane_batch(self, lane: int, step: int) -> Int64[ndarray, "b"]:
        """The positions that `lane` gives to this epoch's step, 0 <= step < num_steps."""
        assert 0 <= step < self.num_steps, (step, self.num_steps)
        size = self.config.lane_batch
        places = np.arange(step * size, (step + 1) * size)
        windows = places // self.config.shuffle_window
        parts = [
            self.window(lane, int(window))[places[windows == window] % self.config.shuffle_window]
            for window in np.unique(windows)
        ]
        return np.concatenate(parts)

    def window(self, lane: int, window: int) -> Int64[ndarray, "w"]:
        """The positions in one window of a lane, in the order in which they are seen: a few runs, permuted."""
        start = window * self.config.shuffle_window
        stop = min(start + self.config.shuffle_window, self.lane_length)
        assert 0 <= start < stop, (window, self.lane_length)
        draw = generator(self.config.seed, f"window/{self.epoch}", step=window, lane=lane)
        return self._positions(lane * self.lane_length + start + draw.permutation(stop - start))

    def _positions(self, places: Int64[ndarray, "w"]) -> Int64[ndarray, "w"]:
        """Places in this epoch's line to positions in the set."""
        rolled = (places + self._roll) % self.num_samples
        nth = np.searchsorted(self._ends, rolled, side="right")
        positions: Int64[ndarray, "w"] = self._first[self._shards[nth]] + rolled - self._starts[nth]
        return positions


def stretches(
    shard_sizes: list[int], config: OrderConfig, lanes: list[int], start_step: int, stop_step: int, num_windows: int = 1
) -> Iterator[Int64[ndarray, "lanes w"]]:
    """The positions that these lanes see from one step to before another, a row a lane, in stretches of some windows.

    Laid side by side, the stretches are [lanes, steps * lane batch]. Each ends where a window (every `num_windows`-th
    of an epoch) ends, so what is fetched for one is what it shows, and a start in mid-window needs the rest of it.
    """
    num_steps = EpochOrder(shard_sizes, config, epoch=0).num_steps
    for epoch in range(start_step // num_steps, -(-stop_step // num_steps)):
        order = EpochOrder(shard_sizes, config, epoch)
        first = max(0, start_step - epoch * num_steps) * config.lane_batch  # of what a lane shows in this epoch
        last = min(num_steps, stop_step - epoch * num_steps) * config.lane_batch
        width = num_windows * config.shuffle_window
        for begin in range(first // width * width, last, width):
            start, stop = max(begin, first), min(begin + width, last)
            windows = range(start // config.shuffle_window, -(-stop // config.shuffle_window))
            rows = [np.concatenate([order.window(lane, window) for window in windows]) for lane in lanes]
            skip = windows.start * config.shuffle_window
            yield np.stack(rows)[:, start - skip : stop - skip]


def lanes_of(rank: int, num_workers: int, num_lanes: int) -> list[int]:
    """The lanes that a worker reads: rank, rank + W, …. Raises ValueError if there are more workers than lanes."""
    if num_workers > num_lanes:
        raise ValueError(f"num_workers must be at most num_lanes={num_lanes}, got {num_workers}")
    return list(range(rank, num_lanes, num_workers))
