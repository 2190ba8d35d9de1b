"""From a trained network to pictures: images that do not depend on how the work was split.

Every image has a seed of its own, from which all its noise comes, and is computed in chunks of one fixed shape.
"""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import nn

from .loss import split_output
from .process import Diffusion, split, to_uint8
from .samplers import SAMPLERS, SPACINGS, Denoised, clipped
from .seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor

    from .samplers import Denoiser
    from .unet import UNet

SamplerName = Literal["ddpm", "ddim", "dpmpp", "heun"]
Spacing = Literal["auto", "leading", "trailing"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How pictures are drawn from a model."""

    sampler: SamplerName = "ddim"
    """ddpm: ancestral, random at every step; ddim, dpmpp (second order), heun (asks twice a step): good in few steps"""
    steps: int = 50
    """timesteps a picture visits, at most the model's num_timesteps"""
    spacing: Spacing = "auto"
    """timesteps: leading ends at 0, trailing begins at the last; auto: trailing for dpmpp and a zero terminal SNR"""
    eta: float = 0.0
    """how much of ddim's noise is drawn anew: 0 none, 1 as in ddpm"""
    guidance: float = 1.0
    """1: none; more: closer to the label, less varied (class-conditional models)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the network; bf16 is faster where the hardware multiplies it, and gives other pictures in the last bits"""

    def __post_init__(self) -> None:
        for name, kind in (("sampler", SamplerName), ("spacing", Spacing), ("precision", Literal["fp32", "bf16"])):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.sampler == "heun" and self.spacing == "trailing":
            raise ValueError("spacing must be leading for sampler=heun (it cannot begin in pure noise), got trailing")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta must be 0 for sampler={self.sampler} (it is ddim's), got {self.eta}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 and finite, got {self.guidance}")


def network_denoiser(
    model: UNet,
    diffusion: Diffusion,
    labels: Int64[Tensor, "b"] | None,
    guidance: float = 1.0,
) -> Denoiser:
    """A Denoiser from a trained network, with x0 clipped to [-1, 1] and eps made to agree with it.

    Guidance g mixes two answers, uncond + g (cond - uncond) (Ho & Salimans 2022); g = 1 asks only once.
    Raises ValueError if guidance is asked of an unconditional model.
    """
    if guidance != 1 and labels is None:
        raise ValueError(f"guidance must be 1 for an unconditional model, got {guidance}")
    null = None if labels is None else torch.full_like(labels, model.config.num_classes)

    def ask(x: Tensor, ts: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with one_thread():
            return split_output(diffusion, model(x, ts, labels).float())

    def denoise(x: Tensor, t: int) -> Denoised:
        ts = torch.full((len(x),), t, device=x.device)
        output, fraction = ask(x, ts, labels)
        if guidance != 1:
            unconditional, _ = ask(x, ts, null)
            output = unconditional + guidance * (output - unconditional)
        alpha_bar = diffusion.alpha_bar(ts)
        found = Denoised(*split(diffusion.config.prediction, alpha_bar, x, output), fraction)
        return clipped(found, alpha_bar, x)

    return denoise


def timesteps_of(config: SamplerConfig, diffusion: Diffusion) -> list[int]:
    """The timesteps to visit, highest first. Raises ValueError unless 1 <= steps <= num_timesteps.

    dpmpp begins at the last: from where leading spacing ends, its last step but one is long, and it goes too far.
    """
    spacing = config.spacing
    if spacing == "auto":
        last_first = config.sampler == "dpmpp" or (diffusion.config.zero_terminal_snr and config.sampler != "heun")
        spacing = "trailing" if last_first else "leading"
    return SPACINGS[spacing](diffusion.num_timesteps, config.steps)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with a single thread on the CPU, so that a picture does not depend on how many there are.

    Where work is cut among threads, sums (GroupNorm, MKL) and the ends of vectors (SiLU) round otherwise, torch 2.13.
    """
    allowed = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(allowed)


def in_chunks(num: int, chunk: int, draw: Callable[[list[int]], Tensor], on_cpu: bool) -> Iterator[Tensor]:
    """`draw(rows)` for the rows 0 … num-1, exactly `chunk` at a time (the last one repeats); what is extra is cut off.

    On a CPU every chunk is drawn by one thread, and as many at once as torch has threads: the same pictures as in any
    other way, and the cores are better used than by cutting up each operation. Raises ValueError if chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    starts = range(0, num, chunk)
    rows = [[min(start + i, num - 1) for i in range(chunk)] for start in starts]
    if not on_cpu:
        yield from (draw(of_chunk)[: num - start] for start, of_chunk in zip(starts, rows, strict=True))
        return
    at_once = torch.get_num_threads()
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, len(rows), at_once):
            with one_thread():  # around all of them: MKL's count is the whole process's
                drawn = list(pool.map(draw, rows[first : first + at_once]))
            for start, pictures in zip(starts[first:], drawn, strict=False):
                yield pictures[: num - start]


def in_precision(model: UNet, precision: str) -> UNet:
    """The model itself, or for bf16 a copy that computes in bfloat16, its norms' parameters apart.

    Autocast would cast every weight at every step.
    """
    if precision == "fp32" or model.conv_in.weight.dtype == torch.bfloat16:
        return model
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            module.to(torch.bfloat16)
    return copied


@torch.inference_mode()
def sample_trajectory(
    model: UNet, diffusion: Diffusion, seeds: Sequence[int], labels: Sequence[int] | None, config: SamplerConfig
) -> Iterator[Float[Tensor, "b c h w"]]:
    """x after every step for images with these seeds (and labels, one an image); the first is pure noise.

    Raises ValueError for labels out of range, or steps over the model's timesteps.
    """
    if model.training:
        raise ValueError("the model must be in eval mode to sample: dropout is for training")
    model, device = in_precision(model, config.precision), next(model.parameters()).device
    noise = image_noise(model, seeds)
    check_labels(labels, len(seeds), model.config.num_classes)
    on_device = None if labels is None else torch.tensor(labels, device=device)
    denoise = network_denoiser(model, diffusion, on_device, config.guidance)
    timesteps = timesteps_of(config, diffusion)
    x = noise(diffusion.num_timesteps)
    yield x
    yield from SAMPLERS[config.sampler](denoise, x, timesteps, diffusion, noise, config.eta)


def image_noise(model: UNet, seeds: Sequence[int], purpose: str = "sample") -> Callable[[int], Tensor]:
    """noise(t): unit Gaussians in the model's shape and device, one an image, each from its own seed and t alone."""
    shape = (model.config.image_channels, model.config.image_size, model.config.image_size)
    device = next(model.parameters()).device

    def noise(t: int) -> Tensor:
        draws = [generator(seed, purpose, step=t + 1).standard_normal(shape, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(draws)).to(device)

    return noise


def sample_images(
    model: UNet,
    diffusion: Diffusion,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    config: SamplerConfig,
    chunk: int,
    watch: Callable[[Float[Tensor, "chunk c h w"]], None] | None = None,
) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Pictures for these seeds (and labels), at most `chunk` at a time, in order.

    Every network call has exactly `chunk` images (the last ones repeat): convolutions at other batch
    sizes differ in the last bits, and picture i must be bitwise the same in any request. `watch` is given x of the
    first chunk, of pure noise and after every step.
    """
    check_labels(labels, len(seeds), model.config.num_classes)
    model = in_precision(model, config.precision)

    def draw(rows: list[int]) -> Tensor:
        of_chunk = None if labels is None else [labels[row] for row in rows]
        for x in sample_trajectory(model, diffusion, [seeds[row] for row in rows], of_chunk, config):
            last = x
            if watch is not None and rows[0] == 0:
                watch(x)
        return to_uint8(last).cpu()

    yield from in_chunks(len(seeds), chunk, draw, next(model.parameters()).device.type == "cpu")


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
