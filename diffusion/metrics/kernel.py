"""The kernel distance between two sets of features: KID, where Inception-v3 makes them. Unbiased, so small sets do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..seeding import generator

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from numpy import ndarray

SUBSET = 1000
"""vectors of either side at a time, as is usual: a kernel matrix has their number squared"""
SUBSETS_AT_LEAST = 10
SAMPLES_AT_LEAST = 2 * SUBSETS_AT_LEAST


class KernelDistance(NamedTuple):
    """A mean over subsets, and how sure it is."""

    value: float
    standard_error: float


def kernel_distance(samples: Float[ndarray, "n d"], reals: Float[ndarray, "m d"]) -> KernelDistance:
    """KID over disjoint subsets of up to 1,000 vectors of either side, at least ten (Bińkowski et al. 2018).

    Vectors are dealt to subsets at random, always in the same way: in samples whose classes take turns, neighbours
    are less alike than chance would have them. Raises ValueError for fewer than twenty vectors on a side.
    """
    num = min(len(samples), len(reals))
    size = min(SUBSET, num // SUBSETS_AT_LEAST)
    if num < SAMPLES_AT_LEAST:
        raise ValueError(f"a kernel distance needs at least {SAMPLES_AT_LEAST} samples on either side, got {num}")
    dealt = [generator(0, "kernel", lane=lane).permutation(len(side)) for lane, side in enumerate((samples, reals))]
    parts = [slice(start, start + size) for start in range(0, num - size + 1, size)]
    found = [squared_mmd(samples[dealt[0][part]], reals[dealt[1][part]]) for part in parts]
    return KernelDistance(float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found))))


def squared_mmd(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> float:
    """The unbiased squared maximum mean discrepancy with k(x, y) = (x·y / d + 1)^3 (Gretton et al. 2012, eq. 3)."""
    within = [(_kernel(x, x).sum() - _kernel_of_itself(x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(sum(within) - 2 * _kernel(a, b).mean())


def _kernel(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> Float64[ndarray, "n m"]:
    similar: Float64[ndarray, "n m"] = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3
    return similar


def _kernel_of_itself(a: Float[ndarray, "n d"]) -> Float64[ndarray, "n"]:
    similar: Float64[ndarray, "n"] = ((a.astype(np.float64) ** 2).sum(axis=1) / a.shape[1] + 1) ** 3
    return similar
