"""How good samples are, from pixels alone: how like the data as a whole, how like its labels, and not copies.

Mended pictures are measured against what they were (`psnr`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

THUMBNAIL = 8
EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of n feature vectors, float64."""

    num_samples: int
    mean: Float64[ndarray, "d"]
    covariance: Float64[ndarray, "d d"]


def moments(features: Float[ndarray, "n d"]) -> Moments:
    """Raises ValueError for fewer than two vectors, which have no covariance."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
    return Moments(len(features), features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], -1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the distance behind FID (Dowson & Landau 1982).

    The trace of the root is taken from the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root)


def thumbnails(images: UInt8[Tensor, "n c h w"]) -> Float64[ndarray, "n d"]:
    """Pictures averaged down to 8x8 (if they are larger), in [0, 1], flat: the features of `frechet_distance` here."""
    side = min(THUMBNAIL, images.shape[-1])
    return F.adaptive_avg_pool2d(images.double() / 255, side).flatten(1).numpy()


def psnr(mean_squared_error: float) -> float:
    """Peak signal to noise ratio in dB of 8-bit pictures, from their mean squared error in squared 8-bit steps."""
    return math.inf if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)


def nearest(
    queries: UInt8[Tensor, "n c h w"], references: UInt8[Tensor, "m c h w"]
) -> tuple[Float[ndarray, "n"], Int64[ndarray, "n"]]:
    """Each query's nearest reference: its Euclidean distance in pixels scaled to [0, 1], and its index."""
    known = references.flatten(1).float() / 255
    distances, indices = [], []
    for part in queries.split(256):
        # Not by matrix product, which makes the distance of an exact copy up to 0.03.
        found = torch.cdist(part.flatten(1).float() / 255, known, compute_mode=EXACT).min(dim=1)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()
