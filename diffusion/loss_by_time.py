"""The loss of many steps by quartile of the timesteps: where in the chain a network still learns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .training import StepReport

NUM_PARTS = 4


class LossByTime:
    """Sums and counts of the losses of every sample of the steps that are added, but for those that were skipped."""

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self.num_timesteps = num_timesteps
        self.totals: Float[Tensor, "2 4"] = torch.zeros(2, NUM_PARTS, device=device)
        """sums, then counts; those of several workers add up"""

    def add(self, report: StepReport) -> None:
        """Count the samples of a step. Nothing is moved from the device, which would wait for it."""
        if report.skipped:
            return
        part = (report.t * NUM_PARTS // self.num_timesteps).to(self.totals.device, non_blocking=True)
        self.totals[0].index_add_(0, part, report.losses.float())
        self.totals[1].index_add_(0, part, torch.ones_like(report.losses, dtype=torch.float32))


def mean_losses(totals: Float[Tensor, "2 4"]) -> dict[str, float]:
    """`loss` over all samples (nan if there are none) and `loss_t1` … `loss_t4` of the quartiles that have any.

    t1 is that of the least noise.
    """
    sums, counts = totals.tolist()
    parts = {f"loss_t{i}": total / count for i, (total, count) in enumerate(zip(sums, counts, strict=True), 1) if count}
    return {"loss": sum(sums) / sum(counts) if sum(counts) else math.nan, **parts}
