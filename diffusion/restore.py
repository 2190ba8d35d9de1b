"""Mending pictures with a model that was only trained to draw them: no other training, no other network.

What is missing is painted in around what is known (`inpaint`). What is noisy or otherwise damaged is taken to be
some x_t, t < T, and the way back is begun there (`begin_at`): what noise of that strength leaves of it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch.nn import functional as F

from .process import CLEAN, Diffusion, q_sample, q_step, to_uint8, to_unit_range
from .samplers import SAMPLERS, ancestral_step
from .sampling import SamplerConfig, image_noise, in_chunks, in_precision, network_denoiser, timesteps_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float, UInt8
    from torch import Tensor

    from .samplers import Denoiser, Noise
    from .unet import UNet

Damage = Literal["auto", "none", "box", "noise", "blur"]
PIXELS_PER_UNIT = 127.5


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(SamplerConfig):
    """How pictures are mended: by inpainting with a mask, by denoising with a noise_std, else from `strength` on.

    Inpainting is always ancestral, whatever the sampler; of the `steps` only those are taken that lie after the begin.
    """

    damage: Damage = "auto"
    """done first, to see how well it is undone; auto: none to files, to held-out pictures box (noise with noise_std)"""
    noise_std: float = 0.0
    """standard deviation of the Gaussian noise that is in the pictures, in 8-bit steps (0 … 255)"""
    strength: float = 0.5
    """where the way back begins for damage of another kind: near 0 changes little, 1 keeps nothing"""
    jump: int = 5
    """inpainting goes back and forth over so many steps at a time, to make the new fit the known"""
    resamples: int = 5
    """how often it does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damage not in get_args(Damage):
            raise ValueError(f"damage must be one of {', '.join(get_args(Damage))}, got {self.damage!r}")
        if not 0 <= self.noise_std <= 255:
            raise ValueError(f"noise_std must lie in [0, 255], got {self.noise_std}")
        if self.damage == "noise" and not self.noise_std:
            raise ValueError("noise_std must be above 0 with damage=noise, got 0")
        if self.damage in ("box", "blur") and self.noise_std:
            raise ValueError(f"noise_std must be 0 with damage={self.damage}, got {self.noise_std}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")
        for name in ("jump", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.guidance != 1:
            raise ValueError(f"guidance must be 1 to restore (nobody says what is in the picture), got {self.guidance}")


def damaged(
    images: UInt8[Tensor, "n c h w"], config: RestoreConfig, noise: Float[Tensor, "n c h w"]
) -> tuple[UInt8[Tensor, "n c h w"], Bool[Tensor, "n 1 h w"] | None]:
    """The pictures with `config.damage` done to them, as files would hold them; which pixels are whole (None: all)."""
    if config.damage == "noise":
        return to_uint8(to_unit_range(images) + config.noise_std / PIXELS_PER_UNIT * noise), None
    if config.damage == "blur":
        block = max(2, images.shape[3] // 8)
        small = F.avg_pool2d(images.float(), block, ceil_mode=True, count_include_pad=False)
        return F.interpolate(small, size=images.shape[2:], mode="bilinear").round().to(torch.uint8), None
    assert config.damage != "auto", "somebody decides by what the pictures are"
    if config.damage == "box":
        height, width = images.shape[2:]
        keep = torch.ones(len(images), 1, height, width, dtype=torch.bool)
        keep[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = False
        return images.masked_fill(~keep, 127), keep
    return images, None


def restore_images(
    model: UNet,
    diffusion: Diffusion,
    images: UInt8[Tensor, "n c h w"],
    keep: Bool[Tensor, "n 1 h w"] | None,
    seeds: Sequence[int],
    config: RestoreConfig,
    chunk: int,
) -> Iterator[UInt8[Tensor, "c h w"]]:
    """The pictures mended, in order; `keep` says which pixels are whole, None that all are a little damaged.

    Every picture has a seed of its own and every network call exactly `chunk` pictures (the last ones repeat): so
    a picture comes out the same alone or among others. Raises ValueError for pictures or masks of another size.
    """
    side, channels = model.config.image_size, model.config.image_channels
    if tuple(images.shape[1:]) != (channels, side, side):
        raise ValueError(f"pictures must be of shape {(channels, side, side)}, got {tuple(images.shape[1:])}")
    if model.training:
        raise ValueError("the model must be in eval mode to restore: dropout is for training")
    if len(seeds) != len(images):
        raise ValueError(f"seeds must be one a picture: got {len(seeds)} for {len(images)}")
    if keep is not None and tuple(keep.shape) != (len(images), 1, side, side):
        raise ValueError(f"masks must be of shape {(len(images), 1, side, side)}, got {tuple(keep.shape)}")
    model = in_precision(model, config.precision)

    def mend(rows: list[int]) -> Tensor:
        of_chunk = None if keep is None else keep[rows]
        return _restore_chunk(model, diffusion, images[rows], of_chunk, [seeds[row] for row in rows], config)

    for pictures in in_chunks(len(images), chunk, mend, next(model.parameters()).device.type == "cpu"):
        yield from pictures


@torch.inference_mode()
def _restore_chunk(
    model: UNet,
    diffusion: Diffusion,
    images: UInt8[Tensor, "n c h w"],
    keep: Bool[Tensor, "n 1 h w"] | None,
    seeds: Sequence[int],
    config: RestoreConfig,
) -> UInt8[Tensor, "n c h w"]:
    device = next(model.parameters()).device
    known = to_unit_range(images.to(device))
    num_classes = model.config.num_classes
    null = torch.full((len(images),), num_classes, device=device) if num_classes else None
    denoise = network_denoiser(model, diffusion, null)
    noise = image_noise(model, seeds, "restore")
    timesteps = timesteps_of(config, diffusion)
    if keep is not None:
        walk = repaint_walk(timesteps, config.jump, config.resamples)
        *_, last = inpaint(denoise, known, keep.to(device), walk, diffusion, noise)
        return torch.where(keep, images, to_uint8(last).cpu())
    noise_std = config.noise_std / PIXELS_PER_UNIT
    first = first_timestep(diffusion, config)
    last = begin_at(diffusion, known, first, noise_std, noise(diffusion.num_timesteps))
    left = [t for t in timesteps if t < first]
    for x in SAMPLERS[config.sampler](denoise, last, [first, *left], diffusion, noise, config.eta):
        last = x
    return to_uint8(last).cpu()


def repaint_walk(timesteps: Sequence[int], jump: int, resamples: int) -> list[int]:
    """The timesteps to visit, down to CLEAN, every stretch of `jump` steps `resamples` times (Lugmayr et al. 2022).

    timesteps descend. Between two stretches of the walk it rises: there noise is added again.
    """
    levels = [*timesteps, CLEAN]
    walk = [levels[0]]
    for start in range(0, len(timesteps), jump):
        stretch = levels[start : start + jump + 1]
        for again in range(resamples):
            walk += stretch if again else stretch[1:]
    return walk


def inpaint(
    denoise: Denoiser,
    known: Float[Tensor, "b c h w"],
    keep: Bool[Tensor, "b 1 h w"],
    walk: Sequence[int],
    diffusion: Diffusion,
    noise: Noise,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """RePaint (Lugmayr et al. 2022, algorithm 1): on the way back, what is known is put in as noisy as the rest is.

    `keep` is true where `known`, in [-1, 1], is right. `walk` is that of `repaint_walk`; `noise(k)` gives unit
    Gaussians by number. Yields x after every step; the last one has `known` where it is kept.
    """
    x = noise(0)
    for number, (t, t_next) in enumerate(pairwise(walk), start=1):
        alpha_bar, following = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t_next)
        if t_next > t:
            x = q_step(1 - following / alpha_bar, x, noise(2 * number))
        else:
            mean, deviation = ancestral_step(denoise(x, t), x, alpha_bar, following, diffusion)
            painted = mean if t_next == CLEAN else mean + deviation * noise(2 * number)
            x = torch.where(keep, q_sample(following, known, noise(2 * number + 1)), painted)
        yield x


def first_timestep(diffusion: Diffusion, config: RestoreConfig) -> int:
    """Where to begin: the first timestep at least as noisy as the picture, or `strength` of the way to the last."""
    if not config.noise_std:
        return max(0, round(config.strength * diffusion.num_timesteps) - 1)
    # The picture's noise, 2 at most, is never more than the last step's: all schedules end with less than 1% of signal.
    noise_to_signal = ((1 - diffusion.alphas_cumprod) / diffusion.alphas_cumprod).sqrt()
    return int((noise_to_signal >= config.noise_std / PIXELS_PER_UNIT).int().argmax())


def begin_at(
    diffusion: Diffusion,
    images: Float[Tensor, "b c h w"],
    t: int,
    noise_std: float,
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """x_t of pictures that have Gaussian noise of `noise_std` (in units of [-1, 1]) in them already.

    Scaled by sqrt(alpha_bar), they have noise of variance alpha_bar noise_std^2; what is missing of
    1 - alpha_bar is added, so that x_t is what the network was trained on. With noise_std = 0 this is `q_sample`.
    """
    alpha_bar = diffusion.alpha_bar_at(t)
    missing = (1 - alpha_bar - alpha_bar * noise_std**2).clamp(min=0).sqrt()
    return alpha_bar.sqrt() * images + missing * noise
