"""How many bits a picture costs under the model: the variational bound, term by term.

-log2 p(x0) <= L_T + sum_t L_t (Ho et al. 2020, eq. 5): what the end of the chain betrays of the picture, what each
step back is off, and what the last one needs to tell the very pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .gaussian import kl_divergence
from .loss import bound_terms
from .process import q_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from .process import Diffusion
    from .samplers import Denoiser


@dataclass(frozen=True)
class Bound:
    """Bits per dimension of each picture; their sum bounds its negative log-likelihood from above."""

    prior: Float[Tensor, "b"]
    """L_T: from q(x_T | x0) to N(0, I), nothing a network can change"""
    terms: Float[Tensor, "b T"]
    """L_0 (the decoder), L_1, … L_{T-1}"""

    @property
    def total(self) -> Float[Tensor, "b"]:
        """The bound itself."""
        return self.prior + self.terms.sum(dim=1)


@torch.inference_mode()
def bits_per_dim(
    denoise: Denoiser, diffusion: Diffusion, x0: Float[Tensor, "b c h w"], noise: Callable[[int], Tensor]
) -> Bound:
    """The bound for pictures x0 (8-bit pixels scaled by `to_unit_range`), asking the denoiser once a timestep.

    `noise(t)` gives the unit Gaussian of step t; the terms are unbiased estimates, one draw each.
    """
    terms = []
    for t in range(diffusion.num_timesteps):
        ts = torch.full((len(x0),), t, device=x0.device)
        x_t = q_sample(diffusion.alpha_bar(ts), x0, noise(t))
        found = denoise(x_t, t)
        terms.append(bound_terms(diffusion, ts, x0, x_t, found.x0, found.variance_fraction))
    return Bound(prior_bits(diffusion, x0), torch.stack(terms, dim=1))


def prior_bits(diffusion: Diffusion, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """KL(q(x_T | x0) || N(0, I)) in bits per dimension: what is left of each picture at the end of the chain."""
    alpha_bar = diffusion.alpha_bar_at(diffusion.num_timesteps - 1)
    zero = torch.zeros((), dtype=torch.float64, device=x0.device)
    mean = alpha_bar.sqrt().item() * x0.double()
    log_variance = torch.log1p(-alpha_bar).to(x0.device)
    return kl_divergence(mean, log_variance, zero, zero).mean(dim=(1, 2, 3)) / math.log(2)
