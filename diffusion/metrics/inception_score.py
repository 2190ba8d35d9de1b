"""The Inception Score: whether each sample is surely of one class, and all classes are there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int64
    from torch import Tensor


def inception_score(logits: Float[Tensor, "n classes"]) -> float:
    """exp E_x KL(p(y|x) || p(y)), 1 … the number of classes (Salimans et al. 2016). Raises ValueError for no sample."""
    return score_of_rows(logits)(torch.arange(len(logits)))


def score_of_rows(logits: Float[Tensor, "n classes"]) -> Callable[[Int64[Tensor, "m"]], float]:
    """The Inception Score of rows of these logits, to be asked for many selections: classes' probabilities are kept.

    E_x KL(p(y|x) || p(y)) = H(p(y)) - E_x H(p(y|x)), so that a selection takes one product of its counts with them.
    """
    given = logits.double().log_softmax(dim=1)
    probabilities = given.exp()
    entropies = -(probabilities * given).sum(dim=1)

    def score(rows: Int64[Tensor, "m"]) -> float:
        if not len(rows):
            raise ValueError("an Inception Score needs at least 1 sample, got 0")
        counts = torch.bincount(rows, minlength=len(probabilities)).double()
        whole = counts @ probabilities / len(rows)
        return math.exp(float(-torch.special.xlogy(whole, whole).sum() - entropies[rows].mean()))

    return score
