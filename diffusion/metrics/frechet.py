"""The Fréchet distance between two sets of features, as if both were Gaussian: FID, where Inception-v3 makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float, Float64
    from numpy import ndarray


@dataclass(frozen=True)
class Moments:
    """What is left of n feature vectors, however many: moments of parts are `merged` to those of the whole."""

    num_samples: int
    mean: Float64[ndarray, "d"]
    scatter: Float64[ndarray, "d d"]
    """sum over the vectors of (x - mean) (x - mean)^T"""

    @property
    def covariance(self) -> Float64[ndarray, "d d"]:
        """Unbiased. Raises ValueError for fewer than two vectors, which have none."""
        if self.num_samples < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.num_samples}")
        return self.scatter / (self.num_samples - 1)

    @cached_property
    def root(self) -> Float64[ndarray, "d d"]:
        """The symmetric square root of the covariance: what a distance to others costs most, so kept."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Float64[ndarray, "d d"] = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        return root


def moments(features: Float[ndarray, "n d"]) -> Moments:
    """Taken in float64. Raises ValueError for no vector at all."""
    if not len(features):
        raise ValueError("moments need at least 1 sample, got 0")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return Moments(len(features), mean, (features - mean).T @ (features - mean))


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts' vectors together (Chan, Golub & LeVeque 1983, eq. 2.1). Raises ValueError for none."""
    coming = iter(parts)
    first = next(coming, None)
    if first is None:
        raise ValueError("moments need at least 1 part, got 0")
    return reduce(_merge, coming, first)


def _merge(a: Moments, b: Moments) -> Moments:
    num, difference = a.num_samples + b.num_samples, b.mean - a.mean
    between = np.outer(difference, difference) * (a.num_samples * b.num_samples / num)
    return Moments(num, a.mean + difference * (b.num_samples / num), a.scatter + b.scatter + between)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the distance behind FID (Dowson & Landau 1982).

    The trace of the root is taken from the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: against many,
    let the one that stays be `a`. Raises ValueError where one of them has fewer than two vectors.
    """
    trace_of_root = np.sqrt(np.linalg.eigvalsh(a.root @ b.covariance @ a.root).clip(0)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root)
