"""The Inception Score: whether each sample is surely of one class, and all classes are there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def inception_score(logits: Float[Tensor, "n classes"]) -> float:
    """exp E_x KL(p(y|x) || p(y)), 1 … the number of classes (Salimans et al. 2016). Raises ValueError for no sample."""
    if not len(logits):
        raise ValueError("an Inception Score needs at least 1 sample, got 0")
    given = logits.double().log_softmax(dim=1)
    whole = given.logsumexp(dim=0) - math.log(len(given))
    return math.exp(float((given.exp() * (given - whole)).sum(dim=1).mean()))
