"""The network: a UNet that sees a noisy picture, its timestep and perhaps a label, and names what was mixed.

With the defaults it is exactly the CIFAR-10 network of Ho et al. 2020 (appendix B): 35,746,307 parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a UNet, apart from what the data decides."""

    base_channels: int = 128
    """width of the first level"""
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    """width of each level, as a multiple of base_channels; the picture halves between levels"""
    num_res_blocks: int = 2
    """residual blocks a level on the way down (one more on the way up)"""
    attention_resolutions: tuple[int, ...] = (16,)
    """sides, in pixels, at which self-attention is used (always in the middle)"""
    dropout: float = 0.1
    """inside residual blocks"""
    norm_groups: int = 32
    """groups of every GroupNorm"""

    def __post_init__(self) -> None:
        if not self.channel_mults or min(self.channel_mults) < 1:
            raise ValueError(f"channel_mults must be one or more positive integers, got {self.channel_mults}")
        if self.norm_groups < 1 or self.base_channels < 1 or self.base_channels % self.norm_groups:
            raise ValueError(
                f"base_channels must be a positive multiple of norm_groups={self.norm_groups}, got {self.base_channels}"
            )
        if self.base_channels % 2:
            raise ValueError(f"base_channels must be even, got {self.base_channels}")
        if self.num_res_blocks < 1:
            raise ValueError(f"num_res_blocks must be at least 1, got {self.num_res_blocks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """A network for pictures of one size and kind."""

    image_size: int = 32
    """side of the square picture in pixels; divisible by 2^(levels - 1)"""
    image_channels: int = 3
    """1 grey, 3 RGB"""
    num_classes: int = 0
    """0: unconditional; else labels 0 … num_classes - 1, and num_classes is the null class of guidance"""

    def __post_init__(self) -> None:
        super().__post_init__()
        shrink = 2 ** (len(self.channel_mults) - 1)
        if self.image_size < 1 or self.image_size % shrink:
            raise ValueError(
                f"image_size must be a positive multiple of {shrink} for {len(self.channel_mults)} levels, "
                f"got {self.image_size}"
            )
        if not 1 <= self.image_channels <= 4:
            raise ValueError(f"image_channels must be 1 to 4, got {self.image_channels}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}")


class UNet(nn.Module):
    """eps_hat (or x0_hat, or v_hat) = unet(x_t, t, labels)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, embedding = config.base_channels, 4 * config.base_channels
        widths = [base * mult for mult in config.channel_mults]
        self.time_embedding = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label_embedding = nn.Embedding(config.num_classes + 1, embedding) if config.num_classes else None
        self.conv_in = nn.Conv2d(config.image_channels, base, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = base, [base]
        for level, out in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(Block(config, width, out, attend=self._attends(level)))
                skips.append(width := out)
            if level < len(widths) - 1:
                self.down.append(Downsample(width))
                skips.append(width)
        self.middle = nn.ModuleList([Block(config, width, width, attend=True), Block(config, width, width)])
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Block(config, width + skips.pop(), out, attend=self._attends(level)))
                width = out
            if level > 0:
                self.up.append(Upsample(width))

        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=1e-6)
        self.conv_out = zeroed(nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], labels: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """What the network names, in x_t's shape. t in 0 … T-1; labels in 0 … num_classes, None if unconditional.

        Raises ValueError if x_t is not of the configured size, or labels and num_classes disagree.
        """
        self._check(x_t, labels)
        embedding = self.time_embedding(sinusoidal(t, self.config.base_channels))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels)
        embedding = F.silu(embedding)

        x = self.conv_in(x_t)
        skips = [x]
        for module in self.down:
            x = module(x, embedding)
            skips.append(x)
        for module in self.middle:
            x = module(x, embedding)
        for module in self.up:
            if isinstance(module, Block):
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out

    def _attends(self, level: int) -> bool:
        return self.config.image_size // 2**level in self.config.attention_resolutions

    def _check(self, x_t: Tensor, labels: Tensor | None) -> None:
        expected = (self.config.image_channels, self.config.image_size, self.config.image_size)
        if tuple(x_t.shape[1:]) != expected:
            raise ValueError(f"x_t must have shape [b, {', '.join(map(str, expected))}], got {list(x_t.shape)}")
        if (labels is None) != (self.config.num_classes == 0):
            raise ValueError(
                "an unconditional model takes no labels"
                if labels is not None
                else f"labels must be given: the model has {self.config.num_classes} classes"
            )


class Block(nn.Module):
    """A residual block told the timestep, then self-attention if `attend`."""

    def __init__(self, config: UNetConfig, width: int, out: int, attend: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_groups, width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.embedding = nn.Linear(4 * config.base_channels, out)
        self.norm2 = nn.GroupNorm(config.norm_groups, out, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = Pointwise(width, out) if width != out else nn.Identity()
        self.attention = Attention(config, out) if attend else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        """x + f(x, embedding), then x + attention(x)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.embedding(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.attention(self.skip(x) + h)
        return out


class Pointwise(nn.Linear):
    """A 1x1 convolution, as the matrix product that it is.

    oneDNN's own rounds otherwise with another number of threads; this one does not, so that pictures can be
    bitwise the same on any machine of a kind. On channels-last images nothing is copied.
    """

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """The same linear map at every pixel."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Single-headed self-attention over the pixels."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, width, eps=1e-6)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x + attention(norm(x))."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        out: Tensor = self.out(attended)
        return x + out.transpose(1, 2).view_as(x)


class Downsample(nn.Module):
    """Half the side: a stride-2 convolution, padded right and below as in Ho et al.'s code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"], _embedding: Tensor) -> Float[Tensor, "b c h/2 w/2"]:
        """The embedding is not used; every module of a level has the same signature."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the side: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], _embedding: Tensor) -> Float[Tensor, "b c 2*h 2*w"]:
        """The embedding is not used; every module of a level has the same signature."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def sinusoidal(t: Int[Tensor, "b"], width: int) -> Float[Tensor, "b width"]:
    """Sines, then cosines, of t at width / 2 frequencies from 1 down to 1/10000 (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / max(half - 1, 1) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def zeroed(module: M) -> M:
    """The module with its parameters set to zero, so that a block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
