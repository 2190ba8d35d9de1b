"""Noise schedules: how much of the picture is replaced by noise at each timestep.

A schedule is a table of betas, `q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)` for t = 0 … T-1
(index 0 is the first, smallest step). Everything else is derived from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float64
    from torch import Tensor


def linear_betas(num_timesteps: int) -> Float64[Tensor, "T"]:
    """Betas from 1e-4 to 0.02 in equal steps (Ho et al. 2020, section 4), rescaled by 1000 / T for T != 1000.

    Returns float64 [T]. Raises ValueError if T is so small that a beta would reach 1.
    """
    scale = 1000 / max(1, num_timesteps)
    # From the end, so that a single step is the largest (and refused), not the smallest.
    return checked(torch.linspace(0.02 * scale, 1e-4 * scale, num_timesteps, dtype=torch.float64).flip(0))


def cosine_betas(num_timesteps: int) -> Float64[Tensor, "T"]:
    """Betas whose alpha_bar follows a squared cosine, capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Returns float64 [T]. Raises ValueError if T < 1.
    """

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return _betas_of(alpha_bar, num_timesteps)


def sigmoid_betas(num_timesteps: int) -> Float64[Tensor, "T"]:
    """Betas whose alpha_bar falls along a sigmoid from -3 to 3, capped at 0.999 (Jabri et al. 2022, algorithm 1).

    More of the steps are spent in the middle than with `cosine_betas`, which suits larger pictures. (diffusers gives
    this name to another schedule, whose betas rather than alpha_bar are a sigmoid.) Returns float64 [T].
    Raises ValueError if T < 1.
    """
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))

    def alpha_bar(u: float) -> float:
        return (1 / (1 + math.exp(6 * u - 3)) - low) / (high - low)

    return _betas_of(alpha_bar, num_timesteps)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}


def zero_terminal_snr(betas: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """The schedule stretched so that nothing is left of the picture at the last step (Lin et al. 2023, algorithm 1).

    sqrt(alpha_bar) is shifted to end at 0 and scaled to begin where it did; the last beta becomes 1.
    Returns float64 [T]. Raises ValueError for a single step, which cannot be both the first and the last.
    """
    if len(betas) < 2:
        raise ValueError(f"num_timesteps must be at least 2 for a zero terminal SNR, got {len(betas)}")
    signal = alphas_cumprod(betas).sqrt()
    first, last = signal[0], signal[-1]
    alpha_bar = ((signal - last) * first / (first - last)).square()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return 1 - alpha_bar / before


def alphas_cumprod(betas: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """The share of the picture's variance that is left after t steps: prod_{s <= t} (1 - beta_s) (Ho et al., eq. 4)."""
    return torch.cumprod(1 - betas, dim=0)


def _betas_of(alpha_bar: Callable[[float], float], num_timesteps: int) -> Float64[Tensor, "T"]:
    """The betas of a curve alpha_bar(u), u in [0, 1], capped at 0.999 where it comes to its end."""
    betas = [
        min(1 - alpha_bar((t + 1) / num_timesteps) / alpha_bar(t / num_timesteps), 0.999) for t in range(num_timesteps)
    ]
    return checked(torch.tensor(betas, dtype=torch.float64))


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
