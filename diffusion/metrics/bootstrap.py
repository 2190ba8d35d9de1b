"""How far a metric might be off, had other samples been drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Int64
    from numpy import ndarray

DRAWS = 200
LEVEL = 0.95


class Interval(NamedTuple):
    """A metric with its bootstrap interval."""

    value: float
    low: float
    high: float


def interval(statistic: Callable[[Int64[ndarray, "n"]], float], num_samples: int, draws: int = DRAWS) -> Interval:
    """The metric of all samples, and the 95% in the middle of what samples drawn from them with replacement give.

    `statistic` takes indices of samples. The interval is moved so that its mean is the value: a distance between
    distributions is larger for a sample with repetitions, as it is for a smaller one, and what that adds says nothing
    of chance (Efron & Tibshirani 1993, 10.6). Always the same for the same samples. Raises what `statistic` raises.
    """
    value = statistic(np.arange(num_samples))
    again = [
        statistic(generator(0, "bootstrap", step=draw).integers(num_samples, size=num_samples)) for draw in range(draws)
    ]
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(again) + value
    return Interval(value, float(low), float(high))
