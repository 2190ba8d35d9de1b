"""Raw samples in the order of training, fetched a stretch of a lane at a time, ahead of use and within bounds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from jaxtyping import Int64
    from numpy import ndarray

    from .raw import Raw

    Request = tuple["Stretch", Int64[ndarray, "w"]]
    Fetch = Callable[[Int64[ndarray, "w"]], dict[int, Raw]]


class Stretch:
    """What the lanes see next, a row a lane, and what has been fetched of it."""

    def __init__(self, positions: Int64[ndarray, "lanes w"]) -> None:
        self.positions, self.used = positions, 0
        """used: how many samples each lane has shown"""
        self.asked: list[Future[dict[int, Raw]]] = []
        """for what the first lanes see; the others are still to be asked for"""
        self.samples: dict[int, Raw] = {}
        """what has come and is not used yet"""


class ReadAhead:
    """Takes raw samples step by step out of stretches that `fetch` reads in the threads of a pool.

    All lanes come to the end of a window at once. So what comes next is asked for a lane at a time, in the order in
    which it will be needed, as what is used up makes room: at most `max_samples` are held or asked for, unless more
    are needed at once. With room for one window of each lane, reading keeps the pace of use, and the end of the
    windows is neither burst nor stall.
    """

    def __init__(
        self, stretches: Iterator[Int64[ndarray, "lanes w"]], fetch: Fetch, max_samples: int, pool: Executor
    ) -> None:
        self.held = 0
        """samples held or asked for"""
        self._fetch, self._max_samples, self._pool = fetch, max_samples, pool
        self._open: deque[Stretch] = deque()
        self._requests = self._in_order(stretches)
        self._request = next(self._requests, None)

    def take(self, num: int) -> tuple[Int64[ndarray, "n"], dict[int, Raw]]:
        """The next `num` positions of every lane, lane after lane, and the samples that were fetched of them.

        Raises what `fetch` raised.
        """
        parts: list[Int64[ndarray, "lanes w"]] = []
        samples: dict[int, Raw] = {}
        while num:
            stretch = self._open[0]
            while len(stretch.asked) < len(stretch.positions):
                self._ask()
            if not stretch.used:
                for lane in stretch.asked:  # once, not at every step: 64 lanes make that half a millisecond
                    stretch.samples.update(lane.result())
            part = stretch.positions[:, stretch.used : stretch.used + num]
            kept = stretch.samples
            samples.update((position, kept.pop(position)) for position in part.flatten().tolist() if position in kept)
            parts.append(part)
            num -= part.shape[1]
            stretch.used += part.shape[1]
            self.held -= part.size
            if stretch.used == stretch.positions.shape[1]:
                self._open.popleft()
        while self._request is not None and self.held + len(self._request[1]) <= self._max_samples:
            self._ask()
        return np.concatenate(parts, axis=1).reshape(-1), samples

    def _ask(self) -> None:
        assert self._request is not None, "more was taken than the stretches hold"
        stretch, positions = self._request
        stretch.asked.append(self._pool.submit(self._fetch, positions))
        self.held += len(positions)
        self._request = next(self._requests, None)

    def _in_order(self, stretches: Iterator[Int64[ndarray, "lanes w"]]) -> Iterator[Request]:
        for positions in stretches:
            stretch = Stretch(positions)
            self._open.append(stretch)
            for row in positions:
                yield stretch, row
