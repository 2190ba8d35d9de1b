"""The nearest training picture of each of some pictures, over training tars in Ray tasks: are samples copies?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffusion.metrics.pixels import nearest

from ..cluster.tasks import make_missing
from .features import read_tar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet
    from diffusion.data.shards import TarStats

    from ..config import Workers

MAX_QUERIES = 1000
SHOWN = 10


class Nearest(NamedTuple):
    """Of each query picture."""

    distances: Float[ndarray, "q"]
    """Euclidean, of pixels in [0, 1]"""
    labels: Int64[ndarray, "q"]
    shown: UInt8[ndarray, "s c h w"]
    """the pictures themselves, of the first queries"""
    num_seen: int
    """out of how many pictures"""


@dataclass(frozen=True)
class _Request:
    shards: ShardSet
    queries: UInt8[Tensor, "q c h w"]


def nearest_in(
    shards: ShardSet, tars: Sequence[TarStats], queries: UInt8[Tensor, "q c h w"], workers: Workers
) -> Nearest:
    """Over all these tars; of equally near ones the first one's, whichever task ends first."""
    request, seen = _Request(shards, queries), attrgetter("num_seen")
    total = sum(tar.num_samples for tar in tars)
    found = make_missing("neighbours", tars, lambda _: None, _nearest_in_tar, request, workers, seen, total)
    of_all: Nearest = reduce(_nearer, found)
    return of_all


def _nearest_in_tar(tar: TarStats, request: _Request) -> Nearest:
    """In a Ray task."""
    images, labels = read_tar(request.shards, tar)
    distances, indices = nearest(request.queries, images)
    return Nearest(distances, labels[indices], images.numpy()[indices[:SHOWN]], len(images))


def _nearer(a: Nearest, b: Nearest) -> Nearest:
    takes_b = b.distances < a.distances
    return Nearest(
        np.where(takes_b, b.distances, a.distances),
        np.where(takes_b, b.labels, a.labels),
        np.where(takes_b[:SHOWN, None, None, None], b.shown, a.shown),
        a.num_seen + b.num_seen,
    )
