"""The diffusion process: destroying a picture step by step, jumping there in one step, and the way back.

Forward, one step   q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)          `q_step`
Forward, any step   x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps            `q_sample`
Backward, known x0  q(x_{t-1} | x_t, x0) = N(posterior_mean, posterior_variance I)    `Diffusion.posterior`

x0 is a picture scaled to [-1, 1]; eps is unit Gaussian noise. A network sees (x_t, t) and is trained to
name x0, eps, or a mix of the two called v; from any of these and x_t the others follow (`split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from .schedule import SCHEDULES, alphas_cumprod

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

Schedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x0", "v"]
CLEAN = -1  # the timestep before the first: no noise yet


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Which process a model was trained for."""

    num_timesteps: int = 1000
    """T, the length of the chain"""
    schedule: Schedule = "linear"
    """how the noise grows: linear (Ho et al.) or cosine (Nichol & Dhariwal)"""
    prediction: Prediction = "eps"
    """what the network names: the noise (eps), the picture (x0) or v (Salimans & Ho)"""

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {self.num_timesteps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {self.prediction!r}")
        SCHEDULES[self.schedule](self.num_timesteps)  # raises where the table would be impossible


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


class Diffusion:
    """The tables of one process: betas and alphas_cumprod, float64 [T], on the CPU."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.num_timesteps = config.num_timesteps
        # In float32, 1 - alpha_bar[0] of the linear schedule is already 2e-4 off (relative).
        self.betas = SCHEDULES[config.schedule](config.num_timesteps)
        self.alphas_cumprod = alphas_cumprod(self.betas)

    def alpha_bar(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
        """alphas_cumprod gathered at t (each in 0 … T-1), float64, on t's device, shaped to multiply images."""
        return self.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)

    def alpha_bar_at(self, t: int) -> float:
        """alphas_cumprod at one timestep; 1 before the first one (t = CLEAN), where no noise is left."""
        return 1.0 if t == CLEAN else self.alphas_cumprod[t].item()

    def posterior(
        self, t: int, x0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t_next: int | None = None
    ) -> tuple[Float[Tensor, "b c h w"], float]:
        """Mean [b, c, h, w] and variance (a scalar) of q(x_{t_next} | x_t, x0), t_next < t, by default t - 1.

        Ho et al. 2020, eq. 6 and 7; for a jump of several steps, beta is that of the jump,
        1 - alpha_bar_t / alpha_bar_next (Nichol & Dhariwal 2021, section 4). Into CLEAN, the mean is x0 itself.
        """
        alpha_bar, previous = self.alpha_bar_at(t), self.alpha_bar_at(t - 1 if t_next is None else t_next)
        beta = 1 - alpha_bar / previous
        x0_coefficient = previous**0.5 * beta / (1 - alpha_bar)
        x_t_coefficient = (1 - beta) ** 0.5 * (1 - previous) / (1 - alpha_bar)
        return x0_coefficient * x0 + x_t_coefficient * x_t, beta * (1 - previous) / (1 - alpha_bar)

    def loss(
        self,
        network: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        x0: Float[Tensor, "b c h w"],
        t: Int[Tensor, "b"],
        eps: Float[Tensor, "b c h w"],
        labels: Int[Tensor, "b"] | None,
    ) -> Float[Tensor, "b"]:
        """Mean squared error of the network's answer, one value a sample, float32 (Ho et al. 2020, eq. 14).

        The noisy picture is made here, in closed form: no chain is walked in training.
        """
        alpha_bar = self.alpha_bar(t)
        x_t = q_sample(alpha_bar, x0, eps)
        output = network(x_t, t, labels).float()
        return (output - target(self.config.prediction, alpha_bar, x0, eps)).square().mean(dim=(1, 2, 3))


def _signal_and_noise(alpha_bar: Float[Tensor, "b 1 1 1"], like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), rounded to the images' dtype only now: 1 - alpha_bar cancels."""
    return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)


def to_unit_range(images: Int[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """uint8 pixels to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.float() / 127.5 - 1


def to_uint8(x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b c h w"]:
    """Floats to pixels, round(127.5 (x + 1)), clipped to 0 … 255: the inverse of `to_unit_range`."""
    return (127.5 * (x.float() + 1)).round().clamp(0, 255).to(torch.uint8)
