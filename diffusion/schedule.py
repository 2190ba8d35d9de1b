"""Noise schedules: how much of the picture is replaced by noise at each timestep.

A schedule is a table of betas, `q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)` for t = 0 … T-1
(index 0 is the first, smallest step). Everything else is derived from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor


def linear_betas(num_timesteps: int) -> Float64[Tensor, "T"]:
    """Betas from 1e-4 to 0.02 in equal steps (Ho et al. 2020, section 4), rescaled by 1000 / T for T != 1000.

    Returns float64 [T]. Raises ValueError if T is so small that a beta would reach 1.
    """
    scale = 1000 / max(1, num_timesteps)
    return checked(torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64))


def cosine_betas(num_timesteps: int) -> Float64[Tensor, "T"]:
    """Betas whose alpha_bar follows a squared cosine, capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Returns float64 [T]. Raises ValueError if T < 1.
    """

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((t + 1) / num_timesteps) / alpha_bar(t / num_timesteps), 0.999) for t in range(num_timesteps)
    ]
    return checked(torch.tensor(betas, dtype=torch.float64))


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def alphas_cumprod(betas: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """The share of the picture's variance that is left after t steps: prod_{s <= t} (1 - beta_s) (Ho et al., eq. 4)."""
    return torch.cumprod(1 - betas, dim=0)


def checked(betas: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """The same betas; raises ValueError unless there is at least one and all lie strictly between 0 and 1."""
    if len(betas) == 0:
        raise ValueError("num_timesteps must be at least 1, got 0")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"betas must lie in (0, 1), got {betas.min().item():.3g} to {betas.max().item():.3g} "
            f"for num_timesteps={len(betas)}; use more timesteps"
        )
    return betas
