"""From noise to pictures: samplers as generators, and images that do not depend on how the work was split.

A sampler walks timesteps from high to low over any `Denoiser`, a callable that splits x_t at step t into
its picture and its noise. It yields x after every step; the last one is the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from .process import CLEAN, Diffusion, split, to_uint8
from .seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, UInt8
    from torch import Tensor

    from .unet import UNet

    Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]
    Noise = Callable[[int], Tensor]

SamplerName = Literal["ddpm", "ddim"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How pictures are drawn from a model."""

    sampler: SamplerName = "ddim"
    """ddpm: ancestral, random at every step; ddim: deterministic, good in few steps"""
    steps: int = 50
    """network evaluations a picture, at most the model's num_timesteps"""
    guidance: float = 1.0
    """1: none; more: closer to the label, less varied (class-conditional models)"""

    def __post_init__(self) -> None:
        if self.sampler not in get_args(SamplerName):
            raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerName))}, got {self.sampler!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 and finite, got {self.guidance}")


def leading_timesteps(num_timesteps: int, steps: int) -> list[int]:
    """`steps` evenly spaced timesteps, highest first, ending at 0 (DDIM's "leading" spacing).

    Raises ValueError unless 1 <= steps <= num_timesteps.
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps} (the model's timesteps), got {steps}")
    stride = num_timesteps // steps
    return [i * stride for i in reversed(range(steps))]


def ddpm(
    denoise: Denoiser, x: Float[Tensor, "b c h w"], timesteps: Sequence[int], diffusion: Diffusion, noise: Noise
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), variance fixed_small, over any descending timesteps.

    `noise(t)` gives the unit Gaussian that leaves step t.
    """
    for t, t_next in pairwise([*timesteps, CLEAN]):
        x0, _ = denoise(x, t)
        mean, variance = diffusion.posterior(t, x0, x, t_next)
        x = mean if t_next == CLEAN else mean + variance**0.5 * noise(t)
        yield x


def ddim(
    denoise: Denoiser, x: Float[Tensor, "b c h w"], timesteps: Sequence[int], diffusion: Diffusion, _noise: Noise
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Deterministic sampling (Song et al. 2021, eq. 12 with eta = 0) over any descending timesteps."""
    for t, t_next in pairwise([*timesteps, CLEAN]):
        alpha_bar_next = diffusion.alpha_bar_at(t_next)
        x0, eps = denoise(x, t)
        x = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next) ** 0.5 * eps
        yield x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


def network_denoiser(
    model: UNet, diffusion: Diffusion, labels: Float[Tensor, "b"] | None, guidance: float = 1.0
) -> Denoiser:
    """A Denoiser from a trained network, with x0 clipped to [-1, 1] and eps made to agree with it.

    Guidance g mixes two answers, uncond + g (cond - uncond) (Ho & Salimans 2022); g = 1 asks only once.
    Raises ValueError if guidance is asked of an unconditional model.
    """
    if guidance != 1 and labels is None:
        raise ValueError(f"guidance must be 1 for an unconditional model, got {guidance}")
    null = None if labels is None else torch.full_like(labels, model.config.num_classes)

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        ts = torch.full((len(x),), t, device=x.device)
        output = model(x, ts, labels)
        if guidance != 1:
            unconditional = model(x, ts, null)
            output = unconditional + guidance * (output - unconditional)
        alpha_bar = diffusion.alpha_bar(ts)
        x0 = split(diffusion.config.prediction, alpha_bar, x, output.float())[0].clamp(-1, 1)
        return x0, split("x0", alpha_bar, x, x0)[1]

    return denoise


@torch.inference_mode()
def sample_trajectory(
    model: UNet, diffusion: Diffusion, seeds: Sequence[int], labels: Sequence[int] | None, config: SamplerConfig
) -> Iterator[Float[Tensor, "b c h w"]]:
    """x after every step for images with these seeds (and labels, one an image); the first is pure noise.

    Raises ValueError for labels out of range, or steps over the model's timesteps.
    """
    if model.training:
        raise ValueError("the model must be in eval mode to sample: dropout is for training")
    device = next(model.parameters()).device
    shape = (model.config.image_channels, model.config.image_size, model.config.image_size)

    def noise(t: int) -> Tensor:
        draws = [generator(seed, "sample", step=t + 1).standard_normal(shape, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(draws)).to(device)

    check_labels(labels, len(seeds), model.config.num_classes)
    on_device = None if labels is None else torch.tensor(labels, device=device)
    denoise = network_denoiser(model, diffusion, on_device, config.guidance)
    timesteps = leading_timesteps(diffusion.num_timesteps, config.steps)
    x = noise(diffusion.num_timesteps)
    yield x
    yield from SAMPLERS[config.sampler](denoise, x, timesteps, diffusion, noise)


def sample_images(
    model: UNet,
    diffusion: Diffusion,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    config: SamplerConfig,
    chunk: int,
) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Pictures for these seeds (and labels), at most `chunk` at a time, in order.

    Every network call has exactly `chunk` images (the last ones repeat): convolutions at other batch
    sizes differ in the last bits, and picture i must be bitwise the same in any request.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    check_labels(labels, len(seeds), model.config.num_classes)
    for start in range(0, len(seeds), chunk):
        wanted = min(chunk, len(seeds) - start)
        rows = [min(start + i, len(seeds) - 1) for i in range(chunk)]
        chunk_labels = None if labels is None else [labels[row] for row in rows]
        for x in sample_trajectory(model, diffusion, [seeds[row] for row in rows], chunk_labels, config):
            last = x
        yield to_uint8(last[:wanted]).cpu()


def check_labels(labels: Sequence[int] | None, num_images: int, num_classes: int) -> None:
    """Raises ValueError unless there is a label in 0 … num_classes for every image, or none and no classes."""
    if labels is None and num_classes:
        raise ValueError(f"labels must be given: the model has {num_classes} classes")
    if labels is None:
        return
    if not num_classes:
        raise ValueError(f"the model is unconditional and takes no labels, got {list(labels[:3])}…")
    if len(labels) != num_images:
        raise ValueError(f"labels must be one a seed: got {len(labels)} for {num_images} seeds")
    wrong = [label for label in labels if not 0 <= label <= num_classes]
    if wrong:
        raise ValueError(f"labels must be 0 to {num_classes - 1} (or {num_classes}: any), got {wrong[0]}")
