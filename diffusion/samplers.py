"""Ways back from noise to a picture, each a generator that yields x after every step; the last x is the picture.

A sampler walks timesteps from high to low over any `Denoiser`, a callable that splits x_t at step t into its
picture and its noise (`eps_denoiser` makes one of anything that names eps). Between the clean picture and noise x
is a mix, x_t = a x0 + s eps with a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar); what differs is how a sampler goes
from one mix to the next.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from .process import CLEAN, Diffusion, posterior, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    Denoiser = Callable[[Tensor, int], "Denoised"]
    Noise = Callable[[int], Tensor]


class Denoised(NamedTuple):
    """What a denoiser takes x_t to be made of."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    variance_fraction: Float[Tensor, "b c h w"] | None = None
    """where a learned variance lies between the fixed ones, 0 … 1; see `Diffusion.step_log_variance`"""


def eps_denoiser(eps_hat: Callable[[Tensor, int], Tensor], diffusion: Diffusion, clip: bool = True) -> Denoiser:
    """A Denoiser from a callable that names the noise in x_t at step t; `clip` as in `clipped`."""

    def denoise(x: Tensor, t: int) -> Denoised:
        alpha_bar = diffusion.alpha_bar_at(t)
        found = Denoised(*split("eps", alpha_bar, x, eps_hat(x, t)))
        return clipped(found, alpha_bar, x) if clip else found

    return denoise


def clipped(found: Denoised, alpha_bar: Tensor, x: Float[Tensor, "b c h w"]) -> Denoised:
    """The same with x0 kept in [-1, 1], where all pictures are, and eps made to agree with it."""
    return Denoised(*split("x0", alpha_bar, x, found.x0.clamp(-1, 1)), found.variance_fraction)


def ddpm(
    denoise: Denoiser,
    x: Float[Tensor, "b c h w"],
    timesteps: Sequence[int],
    diffusion: Diffusion,
    noise: Noise,
    _eta: float = 0.0,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with the process's own variance, over any descending timesteps.

    `noise(t)` gives the unit Gaussian that leaves step t. The original; on the quality curve (tests/bench, 5 to 50
    evaluations) it wins nowhere with any variance, and fixed_small is the best of them. The cifar10 preset uses it.
    """
    for t, t_next in pairwise([*timesteps, CLEAN]):
        alpha_bar, previous = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t_next)
        mean, deviation = ancestral_step(denoise(x, t), x, alpha_bar, previous, diffusion)
        x = mean if t_next == CLEAN else mean + deviation * noise(t)
        yield x


def ancestral_step(
    found: Denoised, x: Float[Tensor, "b c h w"], alpha_bar: Tensor, previous: Tensor, diffusion: Diffusion
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "..."]]:
    """Mean and standard deviation of the step back from x at alpha_bar to `previous` (Ho et al. 2020, eq. 1)."""
    mean, _ = posterior(alpha_bar, previous, found.x0, x)
    log_variance = diffusion.step_log_variance(alpha_bar, previous, found.variance_fraction)
    return mean, (0.5 * log_variance).exp().to(x.dtype)


def ddim(
    denoise: Denoiser,
    x: Float[Tensor, "b c h w"],
    timesteps: Sequence[int],
    diffusion: Diffusion,
    noise: Noise,
    eta: float = 0.0,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Song et al. 2021, eq. 12: the noise that was named is put back, less of it, a share of it drawn anew.

    eta = 0 draws none and is deterministic; eta = 1 is ancestral sampling with fixed_small. On the quality curve
    (tests/bench) it needs twice dpmpp's evaluations for the same distance; it is the default as the best known.
    """
    for t, t_next in pairwise([*timesteps, CLEAN]):
        alpha_bar, previous = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t_next)
        x0, eps, _ = denoise(x, t)
        fresh = eta**2 * (1 - alpha_bar / previous) * (1 - previous) / (1 - alpha_bar)
        x = previous.sqrt() * x0 + (1 - previous - fresh).sqrt() * eps
        if fresh > 0:
            x = x + fresh.sqrt() * noise(t)
        yield x


def dpmpp(
    denoise: Denoiser,
    x: Float[Tensor, "b c h w"],
    timesteps: Sequence[int],
    diffusion: Diffusion,
    _noise: Noise,
    _eta: float = 0.0,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): in log SNR, a line is drawn through the last two x0's.

    Deterministic, and the best on the quality curve (tests/bench). The first step has no x0 before it and the last
    ends at infinite SNR: these two are DDIM's.
    """
    before, step_before = None, 0.0
    for t, t_next in pairwise([*timesteps, CLEAN]):
        alpha_bar, following = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t_next)
        x0 = denoise(x, t).x0
        step = _half_log_snr(following) - _half_log_snr(alpha_bar)
        slope = 0.0 if before is None or t_next == CLEAN else step / (2 * step_before)
        guess = x0 if before is None else x0 + slope * (x0 - before)
        x = ((1 - following) / (1 - alpha_bar)).sqrt() * x - following.sqrt() * math.expm1(-step) * guess
        before, step_before = x0, step
        yield x


def heun(
    denoise: Denoiser,
    x: Float[Tensor, "b c h w"],
    timesteps: Sequence[int],
    diffusion: Diffusion,
    _noise: Noise,
    _eta: float = 0.0,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Heun's second-order method on d(x / a) / d(s / a) = eps (Karras et al. 2022, algorithm 1 without churn).

    Deterministic. Asks the network twice a step, but once in the last: 2 len(timesteps) - 1 evaluations. Where the
    timesteps begin near pure noise, s / a is in the thousands and its first steps are wild: give it leading ones.
    No preset uses it, and on the quality curve (tests/bench) it wins nowhere.
    Raises ValueError where the first timestep has zero SNR: s / a has no beginning there.
    """
    if timesteps and diffusion.alpha_bar_at(timesteps[0]) == 0:
        raise ValueError(f"heun must start at a timestep of non-zero SNR, got {timesteps[0]}; use fewer steps, or ddim")
    for t, t_next in pairwise([*timesteps, CLEAN]):
        alpha_bar, following = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t_next)
        step = ((1 - following) / following).sqrt() - ((1 - alpha_bar) / alpha_bar).sqrt()
        eps = denoise(x, t).eps
        ahead = following.sqrt() * (x / alpha_bar.sqrt() + step * eps)
        if t_next != CLEAN:
            mean_eps = (eps + denoise(ahead, t_next).eps) / 2
            ahead = following.sqrt() * (x / alpha_bar.sqrt() + step * mean_eps)
        x = ahead
        yield x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp, "heun": heun}


def leading_timesteps(num_timesteps: int, steps: int) -> list[int]:
    """`steps` evenly spaced timesteps, highest first, ending at 0 (DDIM's "leading" spacing).

    Raises ValueError unless 1 <= steps <= num_timesteps.
    """
    _check_steps(num_timesteps, steps)
    stride = num_timesteps // steps
    return [i * stride for i in reversed(range(steps))]


def trailing_timesteps(num_timesteps: int, steps: int) -> list[int]:
    """`steps` evenly spaced timesteps, highest first, from T - 1 where all is noise (Lin et al. 2023, section 3.3).

    Raises ValueError unless 1 <= steps <= num_timesteps.
    """
    _check_steps(num_timesteps, steps)
    return [round(num_timesteps - i * num_timesteps / steps) - 1 for i in range(steps)]


SPACINGS = {"leading": leading_timesteps, "trailing": trailing_timesteps}


def _check_steps(num_timesteps: int, steps: int) -> None:
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps} (the model's timesteps), got {steps}")


def _half_log_snr(alpha_bar: Tensor) -> float:
    """lambda = log(a / s): infinite for a clean picture, minus infinite for pure noise."""
    value = alpha_bar.item()
    if value == 0:
        return -math.inf
    return math.inf if value == 1 else 0.5 * math.log(value / (1 - value))
