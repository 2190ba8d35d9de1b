"""What can be said of Gaussians in closed form: the density, the divergence of two, and the mass of a pixel.

Everything is per element, in nats; variances are given as their logarithms, which neither vanish nor overflow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PIXEL = 2 / 255
"""from one 8-bit value to the next, in pictures scaled to [-1, 1]"""


def log_density(
    x: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """log N(x; mean, exp(log_variance)), element by element."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * (-log_variance).exp())


def kl_divergence(
    mean: Float[Tensor, "*shape"],
    log_variance: Float[Tensor, "*#shape"],
    other_mean: Float[Tensor, "*shape"],
    other_log_variance: Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """KL(N(mean, variance) || N(other_mean, other_variance)) = E[log p - log q] under the first, element by element.

    The expectation of a log-density under a Gaussian is its value at the mean, less half the ratio of the variances.
    """
    log_p = log_density(mean, mean, log_variance) - 0.5
    log_q = log_density(mean, other_mean, other_log_variance) - 0.5 * (log_variance - other_log_variance).exp()
    return log_p - log_q


def log_pixel_mass(
    x0: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """log of the Gaussian's mass on x0's 8-bit step, open-ended at -1 and 1 (Ho et al. 2020, eq. 13).

    x0 holds pixel values k / 127.5 - 1. Finite, with a useful gradient, however far x0 is from the mean.
    """
    deviation = (0.5 * log_variance).exp()
    below = (x0 - mean - PIXEL / 2) / deviation
    above = (x0 - mean + PIXEL / 2) / deviation
    # By symmetry the step may be looked at in the lower tail, where the logarithm has all its digits.
    mirrored = below > 0
    log_low = _log_ndtr(torch.where(mirrored, -above, below))
    log_high = _log_ndtr(torch.where(mirrored, -below, above))
    inside = log_high + torch.log(-torch.expm1(log_low - log_high))
    lowest, highest = x0 < -1 + PIXEL / 2, x0 > 1 - PIXEL / 2
    return torch.where(lowest, _log_ndtr(above), torch.where(highest, _log_ndtr(-below), inside))


def _log_ndtr(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log of the standard normal's mass below z, from the scaled complementary error function.

    torch.special.log_ndtr has these values, but in float32 its gradient is 4 % off at z = -1000 and lost beyond.
    """
    below, above = z.clamp(max=0), z.clamp(min=0)
    tail = (0.5 * torch.special.erfcx(below / -math.sqrt(2))).log() - 0.5 * below.square()
    return torch.where(z < 0, tail, torch.log1p(-0.5 * torch.special.erfc(above / math.sqrt(2))))
