"""Moving averages of the weights: the smooth copies that samples are drawn from.

Which average is best is not known before the end of a training. `reconstruct` finds it then: an average of any width
is, very nearly, a sum of the power-function averages that were saved on the way (Karras et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float64
    from numpy import ndarray
    from torch import Tensor, nn

    Profile = Callable[[int], float]
    """the decay of update k = 0, 1, …"""


def fixed(decay: float) -> Profile:
    """Always the same decay, but warmed up as min(decay, (1 + k) / (10 + k)): a short run must not end on its start.

    Raises ValueError unless 0 <= decay < 1.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema decay must lie in [0, 1), got {decay}")
    return lambda k: min(decay, (1 + k) / (10 + k))


def power(std: float) -> Profile:
    """A power-function average, the weights of time s counting as s^gamma (Karras et al. 2024, eq. 121).

    `std` is its width, as a share of the training so far; the start is forgotten entirely.
    Raises ValueError unless 0 < std < 1 / sqrt(12).
    """
    gamma = power_exponent(std)
    return lambda k: (1 - 1 / (k + 1)) ** (gamma + 1)


@cache  # the products of n snapshots ask for it 2 n^2 times, of a handful of widths
def power_exponent(std: float) -> float:
    """gamma of the profile s^gamma on [0, 1] whose standard deviation is `std` (Karras et al. 2024, eq. 126).

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic with one positive root. Raises ValueError unless
    0 < std < 1 / sqrt(12), the width of a flat profile.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"ema std must lie in (0, {12**-0.5:.3f}), got {std}")
    s = std**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


MAX_ERROR = 0.2
"""of a reconstructed profile, relative to the wanted one, both as functions of time"""


class Ema:
    """Averages the parameters (never the buffers) of a model: average += (1 - decay_k) (parameter - average)."""

    def __init__(self, model: nn.Module, profile: Profile) -> None:
        self.profile = profile
        self.num_updates = 0
        self.parameters: list[Tensor] = list(model.parameters())
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present parameters; call once an optimiser step."""
        torch._foreach_lerp_(list(self.averages.values()), self.parameters, 1 - self.profile(self.num_updates))
        self.num_updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name: the state_dict of a model without buffers."""
        return self.averages

    def load(self, averages: dict[str, Tensor], num_updates: int) -> None:
        """Continue from saved averages. Raises ValueError if they are not of this model's parameters."""
        for name, average in self.averages.items():
            if name not in averages or averages[name].shape != average.shape:
                found = tuple(averages[name].shape) if name in averages else "absent"
                raise ValueError(
                    f"averages are of another network: {name} should be {tuple(average.shape)}, is {found}"
                )
            average.copy_(averages[name])
        self.num_updates = num_updates


@dataclass(frozen=True)
class Snapshot:
    """A power-function average that was saved: of which width, after how many updates."""

    std: float
    num_updates: int


def reconstruction_weights(snapshots: Sequence[Snapshot], wanted: Snapshot) -> Float64[ndarray, "n"]:
    """How much of each snapshot to take for the wanted average: least squares (Karras et al. 2024, algorithm 3).

    The shares are scaled to a sum of 1, as an average of equal weights must be those weights. Raises ValueError for no
    snapshots, an average at a time after the last of them, or one that they do not come near.
    """
    if not snapshots:
        raise ValueError("an average needs at least one snapshot to be made of, got none")
    last = max(snapshot.num_updates for snapshot in snapshots)
    if not 1 <= wanted.num_updates <= last:
        raise ValueError(f"num_updates must be 1 to {last} (the last snapshot), got {wanted.num_updates}")
    products = np.array([[_inner_product(a, b) for b in snapshots] for a in snapshots])
    aims = np.array([_inner_product(a, wanted) for a in snapshots])
    weights: Float64[ndarray, "n"] = np.linalg.lstsq(products, aims, rcond=None)[0]
    weights = weights / weights.sum()
    off = weights @ products @ weights - 2 * weights @ aims + _inner_product(wanted, wanted)
    error = math.sqrt(max(0.0, off) / _inner_product(wanted, wanted))
    if not error <= MAX_ERROR:
        raise ValueError(
            f"the snapshots cannot make an average of std {wanted.std:g} at step {wanted.num_updates}: the nearest is "
            f"{error:.0%} off; ask for a width between theirs and a later step"
        )
    return weights


def reconstruct(
    snapshots: Sequence[Snapshot], load: Callable[[Snapshot], dict[str, Tensor]], wanted: Snapshot
) -> dict[str, Tensor]:
    """The weights of an average that was never kept, from those that were; one snapshot is in memory at a time.

    `load` gives a snapshot's averages by parameter name. Raises ValueError as `reconstruction_weights` does.
    """
    total: dict[str, Tensor] = {}
    for snapshot, weight in zip(snapshots, reconstruction_weights(snapshots, wanted), strict=True):
        for name, average in load(snapshot).items():
            part = average.double() * weight
            total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def _inner_product(a: Snapshot, b: Snapshot) -> float:
    """The integral of two profiles, each of integral 1 on [0, num_updates] (Karras et al. 2024, eq. 146)."""
    first, second = sorted((a, b), key=lambda snapshot: snapshot.num_updates)
    p, q = power_exponent(first.std), power_exponent(second.std)
    ratio: float = first.num_updates / second.num_updates
    return float((p + 1) * (q + 1) / (p + q + 1) * ratio**q / second.num_updates)
