"""How far a network's answer is from the truth, a value a sample: the objectives that a DDPM is trained by.

Each is a function of one noisy batch (`Answered`); `process.LOSSES_OF` says which goes with which variance.
`bound_terms` is one term of the variational bound, by which `likelihood` also measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .gaussian import kl_divergence, log_pixel_mass
from .process import Diffusion, posterior, q_sample, split, target

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]

HYBRID_WEIGHT = 1e-3
"""of the bound in the hybrid loss (Nichol & Dhariwal 2021, eq. 16)"""


@dataclass(frozen=True)
class Answered:
    """A noisy batch and what the network said of it; all float32 but alpha_bar."""

    t: Int[Tensor, "b"]
    alpha_bar: Float[Tensor, "b 1 1 1"]
    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    x_t: Float[Tensor, "b c h w"]
    output: Float[Tensor, "b c h w"]
    """in terms of the config's prediction"""
    variance_fraction: Float[Tensor, "b c h w"] | None


def loss(
    diffusion: Diffusion,
    network: Network,
    x0: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    eps: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"] | None,
) -> Float[Tensor, "b"]:
    """The loss of the diffusion's config, one value a sample, float32.

    The noisy picture is made here, in closed form: no chain is walked in training. x0 in [-1, 1]; t in 0 … T-1.
    """
    alpha_bar = diffusion.alpha_bar(t)
    x_t = q_sample(alpha_bar, x0, eps)
    output, fraction = split_output(diffusion, network(x_t, t, labels).float())
    answered = Answered(t, alpha_bar, x0, eps, x_t, output, fraction)
    return LOSSES[diffusion.config.loss](diffusion, answered)


def split_output(
    diffusion: Diffusion, output: Float[Tensor, "b o h w"]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
    """A network's channels as what it predicts and, if it learns a variance, the fraction of `step_log_variance`.

    The fraction is named in [-1, 1] and not bounded, as in Nichol & Dhariwal's code.
    """
    if diffusion.config.variance != "learned":
        return output, None
    prediction, variance = output.chunk(2, dim=1)
    return prediction, (variance + 1) / 2


def simple(diffusion: Diffusion, answered: Answered) -> Float[Tensor, "b"]:
    """Mean squared error of the answer, all timesteps alike (Ho et al. 2020, eq. 14)."""
    truth = target(diffusion.config.prediction, answered.alpha_bar, answered.x0, answered.eps)
    return (answered.output - truth).square().mean(dim=(1, 2, 3))


def min_snr(diffusion: Diffusion, answered: Answered) -> Float[Tensor, "b"]:
    """The error of x0, weighted by min(SNR, gamma) (Hang et al. 2023): less of the nearly clean than eps gives."""
    weight = min_snr_weight(diffusion, answered.alpha_bar).flatten().float()
    return weight * simple(diffusion, answered)


def min_snr_weight(diffusion: Diffusion, alpha_bar: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """min(SNR, gamma) over what the error of x0 is multiplied by in that of the prediction: 1, SNR or SNR + 1."""
    snr = alpha_bar / (1 - alpha_bar)
    scale = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[diffusion.config.prediction]
    return snr.clamp(max=diffusion.config.snr_gamma) / scale


def vlb(diffusion: Diffusion, answered: Answered) -> Float[Tensor, "b"]:
    """T times the bound's term at t: its mean over uniform t is the bound in bits per dimension, less the prior's."""
    x0_hat, _ = split(diffusion.config.prediction, answered.alpha_bar, answered.x_t, answered.output)
    terms = bound_terms(diffusion, answered.t, answered.x0, answered.x_t, x0_hat, answered.variance_fraction)
    return diffusion.num_timesteps * terms


def hybrid(diffusion: Diffusion, answered: Answered) -> Float[Tensor, "b"]:
    """`simple` for the mean and a thousandth of the bound for the variance alone (Nichol & Dhariwal 2021, eq. 16)."""
    for_variance = Answered(**{**vars(answered), "output": answered.output.detach()})
    return simple(diffusion, answered) + HYBRID_WEIGHT * vlb(diffusion, for_variance)


LOSSES = {"simple": simple, "min_snr": min_snr, "vlb": vlb, "hybrid": hybrid}


def bound_terms(
    diffusion: Diffusion,
    t: Int[Tensor, "b"],
    x0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    x0_hat: Float[Tensor, "b c h w"],
    variance_fraction: Float[Tensor, "b c h w"] | None,
) -> Float[Tensor, "b"]:
    """L_t of the variational bound (Ho et al. 2020, eq. 5), a value a sample, in bits per dimension.

    For t >= 1 the divergence of the true posterior from the model's step back; for t = 0 what the decoder,
    a Gaussian cut into 8-bit steps, needs to tell the pixels of x0 (multiples of 1 / 127.5, less 1).
    """
    alpha_bar, previous = diffusion.alpha_bar(t), diffusion.alpha_bar(t - 1)
    true_mean, _ = posterior(alpha_bar, previous, x0, x_t)
    mean, _ = posterior(alpha_bar, previous, x0_hat, x_t)
    log_variance = diffusion.step_log_variance(alpha_bar, previous, variance_fraction).to(x0.dtype)
    true_log_variance = diffusion.posterior_log_variance(alpha_bar, previous).to(x0.dtype)
    divergence = kl_divergence(true_mean, true_log_variance, mean, log_variance)
    decoder = -log_pixel_mass(x0, mean, log_variance)
    nats = torch.where((t == 0).view(-1, 1, 1, 1), decoder, divergence).mean(dim=(1, 2, 3))
    return nats / math.log(2)
