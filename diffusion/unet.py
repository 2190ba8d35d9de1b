"""The network: a UNet that sees a noisy picture, its timestep and perhaps a label, and names what was mixed.

With the defaults it is exactly the CIFAR-10 network of Ho et al. 2020 (appendix B): 35,746,307 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import Attention, Downsample, Pointwise, Upsample, sinusoidal, zeroed
from .norm import Norm, dropout, silu

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


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
    """sides, in pixels, at which self-attention is used, where a level has that side (and always in the middle)"""
    dropout: float = 0.1
    """inside residual blocks"""
    norm_groups: int = 32
    """groups of every GroupNorm"""
    head_channels: int = 0
    """channels of each attention head; 0: one head of full width, as in Ho et al."""
    scale_shift_norm: bool = False
    """let the timestep scale and shift the second GroupNorm (Dhariwal & Nichol 2021), not be added before it"""

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
        widths = [self.base_channels * mult for mult in self.channel_mults]
        if self.head_channels < 0 or (self.head_channels and any(width % self.head_channels for width in widths)):
            raise ValueError(
                f"head_channels must be 0 (one head) or divide every level's width {widths}, got {self.head_channels}"
            )


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """A network for pictures of one size and kind."""

    image_size: int = 32
    """side of the square picture in pixels; divisible by 2^(levels - 1)"""
    image_channels: int = 3
    """1 grey, 3 RGB"""
    num_classes: int = 0
    """0: unconditional; else labels 0 … num_classes - 1, and num_classes is the null class of guidance"""
    learned_variance: bool = False
    """name also the variance of the step back, in as many channels again (Nichol & Dhariwal 2021)"""

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

    @property
    def output_channels(self) -> int:
        """Those of the picture, twice if the variance is named too."""
        return self.image_channels * (2 if self.learned_variance else 1)


class UNet(nn.Module):
    """eps_hat (or x0_hat, or v_hat) = unet(x_t, t, labels)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.compiled = False
        self.checkpointing = False
        """recompute blocks in the backward pass instead of keeping what they made: less memory, a third more time"""
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

        self.norm_out = Norm(config.norm_groups, width)
        self.conv_out = zeroed(nn.Conv2d(width, config.output_channels, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], labels: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        """What the network names: `output_channels` channels of x_t's size.

        t in 0 … T-1; labels in 0 … num_classes, None if unconditional.
        Raises ValueError if x_t is not of the configured size, or labels and num_classes disagree.
        """
        self._check(x_t, labels)
        dtype = self.conv_in.weight.dtype
        embedding = self.time_embedding(sinusoidal(t, self.config.base_channels).to(dtype))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels)
        embedding = silu(embedding)

        x = self.conv_in(x_t.to(dtype).contiguous(memory_format=self._memory_format(x_t)))
        skips = [x]
        for module in self.down:
            x = self._apply_to(module, x, embedding)
            skips.append(x)
        for module in self.middle:
            x = self._apply_to(module, x, embedding)
        for module in self.up:
            if isinstance(module, Block):
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._apply_to(module, x, embedding)
        out: Tensor = self.conv_out(self.norm_out(x))
        return out

    def compile_norms(self) -> None:
        """Train faster in bfloat16 on a CPU by `Norm`'s compiled passes: needs a C++ compiler, and 20 s at first."""
        self.compiled = True
        for module in self.modules():
            if isinstance(module, Norm):
                module.compiled = True

    def _memory_format(self, x: Tensor) -> torch.memory_format:
        """How pictures lie in memory on their way through.

        Channels-last, but for eager training on a CPU: of that the backward pass of torch's GroupNorm makes a mess.
        """
        eager_training = self.training and not self.compiled and not x.is_cuda
        return torch.contiguous_format if eager_training else torch.channels_last

    def _apply_to(self, module: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            out: Tensor = checkpoint(module, x, embedding, use_reentrant=False)
            return out
        return module(x, embedding)  # type: ignore[no-any-return]

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
        self.norm1 = Norm(config.norm_groups, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.scale_shift = config.scale_shift_norm
        self.embedding = nn.Linear(4 * config.base_channels, 2 * out if self.scale_shift else out)
        self.norm2 = Norm(config.norm_groups, out)
        self.dropout = config.dropout
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = Pointwise(width, out) if width != out else nn.Identity()
        num_heads = out // config.head_channels if config.head_channels else 1
        self.attention = Attention(out, config.norm_groups, num_heads) if attend else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        """x + f(x, embedding), then x + attention(x)."""
        h, drop = self.conv1(self.norm1(x)), self.dropout if self.training else 0.0
        told = self.embedding(embedding)
        if self.scale_shift:
            scale, shift = told[:, :, None, None].chunk(2, dim=1)
            h = dropout(silu(self.norm2(h, act=False) * (1 + scale) + shift), drop)
        else:
            h = self.norm2(h, shift=told, drop=drop)
        out: Tensor = self.attention(self.skip(x) + self.conv2(h))
        return out
