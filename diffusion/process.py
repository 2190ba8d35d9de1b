"""The diffusion process: destroying a picture step by step, jumping there in one step, and the way back.

Forward, one step   q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)          `q_step`
Forward, any step   x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps            `q_sample`
Backward, known x0  q(x_{t-1} | x_t, x0) = N(posterior_mean, posterior_variance I)    `posterior`

x0 is a picture scaled to [-1, 1]; eps is unit Gaussian noise. A network sees (x_t, t) and is trained to
name x0, eps, or a mix of the two called v; from any of these and x_t the others follow (`split`). How far it is
from the truth is in `loss`; how the way back is walked, in `samplers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from .schedule import SCHEDULES, alphas_cumprod, zero_terminal_snr

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

Schedule = Literal["linear", "cosine", "sigmoid"]
Prediction = Literal["eps", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned"]
Loss = Literal["simple", "min_snr", "vlb", "hybrid"]
MAX_TIMESTEPS = 1_000_000
CLEAN = -1  # the timestep before the first: no noise yet

LOSSES_OF: dict[Variance, tuple[Loss, ...]] = {
    "fixed_small": ("simple", "min_snr", "vlb"),
    "fixed_large": ("simple", "min_snr", "vlb"),
    "learned": ("vlb", "hybrid"),
}
"""which losses go with which variance: a squared error teaches no variance, and a hybrid needs one to teach"""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Which process a model is trained for, and by which loss.

    Any schedule goes with any prediction and any loss, but that a schedule with zero terminal SNR goes neither with
    eps (at its last step x_t is all noise and says nothing of x0) nor with min_snr (which would not train that step),
    and that `LOSSES_OF` pairs losses with variances. On the quality curve (tests/bench) v needs a third of eps's
    training steps, min_snr ends a twentieth to a sixth better than simple; sigmoid and zero_terminal_snr are level with
    cosine, and neither fixed_large nor learned wins anywhere.
    """

    num_timesteps: int = 1000
    """T, the length of the chain"""
    schedule: Schedule = "linear"
    """how the noise grows: linear (Ho et al.), cosine (Nichol & Dhariwal) or sigmoid (Jabri et al.)"""
    zero_terminal_snr: bool = False
    """stretch the schedule until no picture is left at its end (Lin et al.); sample with spacing=trailing"""
    prediction: Prediction = "eps"
    """what the network names: the noise (eps), the picture (x0) or v (Salimans & Ho)"""
    variance: Variance = "fixed_small"
    """of a step back: fixed_small (that of the posterior), fixed_large (beta), or learned (Nichol & Dhariwal)"""
    loss: Loss = "simple"
    """simple (Ho et al.), min_snr (Hang et al.), vlb (variational bound) or hybrid (simple, vlb for the variance)"""
    snr_gamma: float = 5.0
    """where min_snr clips the weight of the nearly clean"""

    def __post_init__(self) -> None:
        if not 1 <= self.num_timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"num_timesteps must be at least 1 and at most {MAX_TIMESTEPS}, got {self.num_timesteps}")
        for name, kind in (
            ("schedule", Schedule), ("prediction", Prediction), ("variance", Variance), ("loss", Loss),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if not 0 < self.snr_gamma < math.inf:
            raise ValueError(f"snr_gamma must be above 0 and finite, got {self.snr_gamma}")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("prediction must be x0 or v with zero_terminal_snr, got eps: pure noise does not tell x0")
        if self.zero_terminal_snr and self.loss == "min_snr":
            raise ValueError("loss must not be min_snr with zero_terminal_snr: it gives the last timestep no weight")
        if self.loss not in LOSSES_OF[self.variance]:
            possible = ", ".join(LOSSES_OF[self.variance])
            raise ValueError(f"loss must be one of {possible} with variance={self.variance}, got {self.loss!r}")
        self.betas()  # raises where the table would be impossible

    def betas(self) -> Float64[Tensor, "T"]:
        """The schedule's table, float64 [T]. Raises ValueError where it would not be one."""
        betas = SCHEDULES[self.schedule](self.num_timesteps)
        return zero_terminal_snr(betas) if self.zero_terminal_snr else betas


def q_step(
    beta: Float[Tensor, "b 1 1 1"], x_prev: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """One step of the chain, x_t ~ q(x_t | x_{t-1}) (Ho et al. 2020, eq. 2)."""
    return (1 - beta).sqrt() * x_prev + beta.sqrt() * eps


def q_sample(
    alpha_bar: Float[Tensor, "b 1 1 1"], x0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """x_t ~ q(x_t | x0) in closed form (Ho et al. 2020, eq. 4). x0 in [-1, 1]; eps ~ N(0, I)."""
    signal, noise = _signal_and_noise(alpha_bar, x0)
    return signal * x0 + noise * eps


def target(
    prediction: Prediction,
    alpha_bar: Float[Tensor, "b 1 1 1"],
    x0: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """What the network should say: eps, x0, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.

    v is that of Salimans & Ho 2022, appendix D.
    """
    if prediction == "v":
        signal, noise = _signal_and_noise(alpha_bar, x0)
        return signal * eps - noise * x0
    return eps if prediction == "eps" else x0


def split(
    prediction: Prediction,
    alpha_bar: Float[Tensor, "b 1 1 1"],
    x_t: Float[Tensor, "b c h w"],
    output: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Split x_t into its picture and its noise, (x0_hat, eps_hat), given what the network said: `target` inverted."""
    signal, noise = _signal_and_noise(alpha_bar, x_t)
    if prediction == "eps":
        return (x_t - noise * output) / signal, output
    if prediction == "x0":
        return output, (x_t - signal * output) / noise
    return signal * x_t - noise * output, noise * x_t + signal * output


def posterior(
    alpha_bar: Float64[Tensor, "*#b"],
    previous: Float64[Tensor, "*#b"],
    x0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b c h w"], Float64[Tensor, "*#b"]]:
    """Mean and variance of q(x_s | x_t, x0), s < t, where alpha_bar is that of t and `previous` that of s.

    Ho et al. 2020, eq. 6 and 7; for a jump of several steps, beta is that of the jump, 1 - alpha_bar / previous
    (Nichol & Dhariwal 2021, section 4). Back to the clean picture (previous = 1) the mean is x0 itself.
    """
    beta = 1 - alpha_bar / previous
    x0_coefficient = previous.sqrt() * beta / (1 - alpha_bar)
    x_t_coefficient = (1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar)
    mean = x0_coefficient.to(x0.dtype) * x0 + x_t_coefficient.to(x0.dtype) * x_t
    return mean, beta * (1 - previous) / (1 - alpha_bar)


class Diffusion:
    """The tables of one process: betas and alphas_cumprod, float64 [T], on the CPU."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.num_timesteps = config.num_timesteps
        # In float32, 1 - alpha_bar[0] of the linear schedule is already 2e-4 off (relative).
        self.betas = config.betas()
        self.alphas_cumprod = alphas_cumprod(self.betas)

    def alpha_bar(self, t: Int[Tensor, "b"]) -> Float64[Tensor, "b 1 1 1"]:
        """alphas_cumprod gathered at t (each in 0 … T-1; CLEAN gives 1), float64, on t's device, to multiply images."""
        table = self.alphas_cumprod.to(t.device)
        return torch.where(t == CLEAN, 1.0, table[t]).view(-1, 1, 1, 1)

    def alpha_bar_at(self, t: int) -> Float64[Tensor, ""]:
        """alphas_cumprod at one timestep, a scalar on the CPU; 1 before the first one (t = CLEAN): no noise is left."""
        return self.alphas_cumprod.new_ones(()) if t == CLEAN else self.alphas_cumprod[t]

    def step_log_variance(
        self,
        alpha_bar: Float64[Tensor, "*#b"],
        previous: Float64[Tensor, "*#b"],
        fraction: Float[Tensor, "b c h w"] | None,
    ) -> Float[Tensor, "..."]:
        """log variance of the model's step back from alpha_bar to `previous`, as the config says.

        A learned one lies between the two fixed ones, beta^f posterior_variance^(1 - f), with the network's f in
        `fraction` (Nichol & Dhariwal 2021, eq. 15).
        """
        large, small = (1 - alpha_bar / previous).log(), self.posterior_log_variance(alpha_bar, previous)
        if self.config.variance == "learned":
            assert fraction is not None, "a learned variance comes from the network"
            return small.to(fraction.dtype) + fraction * (large - small).to(fraction.dtype)
        return large if self.config.variance == "fixed_large" else small

    def posterior_log_variance(
        self, alpha_bar: Float64[Tensor, "*#b"], previous: Float64[Tensor, "*#b"]
    ) -> Float64[Tensor, "*#b"]:
        """log of `posterior`'s variance. Back to the clean picture it has none: that of the step before stands in.

        By it Ho et al. decode the last step. A process of one step has no step before: there it is beta.
        """
        variance = (1 - alpha_bar / previous) * (1 - previous) / (1 - alpha_bar)
        first, second = self.alphas_cumprod[0], self.alphas_cumprod[min(1, self.num_timesteps - 1)]
        smallest = self.betas[-1] if self.num_timesteps == 1 else self.betas[1] * (1 - first) / (1 - second)
        return variance.clamp(min=smallest.item()).log()


def _signal_and_noise(alpha_bar: Float[Tensor, "b 1 1 1"], like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), rounded to the images' dtype only now: 1 - alpha_bar cancels."""
    return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)


def to_unit_range(images: Int[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """uint8 pixels to float32 in [-1, 1], x / 127.5 - 1, channel after channel in memory, whatever they came in."""
    return images.contiguous().float() / 127.5 - 1


def to_uint8(x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b c h w"]:
    """Floats to pixels, round(127.5 (x + 1)), clipped to 0 … 255: the inverse of `to_unit_range`."""
    return (127.5 * (x.float() + 1)).round().clamp(0, 255).to(torch.uint8)
