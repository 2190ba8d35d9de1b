"""Precision and recall: how many samples look real, and how much of what is real the samples reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

NEIGHBOURS = 3
ROWS = 1024
"""of a matrix of distances at a time"""


class PrecisionRecall(NamedTuple):
    """Both 0 … 1."""

    precision: float
    recall: float


def precision_recall(samples: Float[Tensor, "n d"], reals: Float[Tensor, "m d"]) -> PrecisionRecall:
    """The share of samples among the reals, and of reals among the samples (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A set's manifold is the union of the balls about its vectors that reach to their third nearest neighbours; both
    depend on the sizes of the sets, and are to be compared at equal ones only. Raises ValueError for fewer than four
    vectors on a side.
    """
    for features in (samples, reals):
        if len(features) <= NEIGHBOURS:
            raise ValueError(f"precision and recall need at least {NEIGHBOURS + 1} samples, got {len(features)}")
    precision, recall = among(samples, reals), among(reals, samples)
    return PrecisionRecall(float(precision.float().mean()), float(recall.float().mean()))


def among(queries: Float[Tensor, "n d"], manifold: Float[Tensor, "m d"]) -> Bool[Tensor, "n"]:
    """Which of them lie in the manifold of the others."""
    reach = radii(manifold)
    return torch.cat([(torch.cdist(rows, manifold) <= reach).any(dim=1) for rows in queries.split(ROWS)])


def radii(features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Each vector's distance to its third nearest other."""
    nearest = [torch.cdist(rows, features).kthvalue(NEIGHBOURS + 1).values for rows in features.split(ROWS)]
    return torch.cat(nearest)  # itself is the nearest
