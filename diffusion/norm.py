"""Group normalisation with what stands around it: a shift before, SiLU and dropout after.

Eager, it is torch's own. For training in bfloat16 on a CPU, where torch's backward pass on channels-last images
costs as much as the convolutions around it (4 channels a group, this network's widest pictures), it can be compiled:
two passes over the picture each way, which torch.compile turns into vector code. One sums over the pixels, the other
applies an affine map and SiLU; what lies between (groups, the shift, the parameters) is arithmetic on [b, c] and costs
nothing. Of 32 pictures' step on one core this took 0.35 s from 4.3 s; saved for backward: x and some [b, c].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, UInt8
    from torch import Tensor


class Norm(nn.GroupNorm):
    """`dropout(silu(norm(x + shift)))`, with eps 1e-6 as in Ho et al."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.compiled = False
        """use the compiled passes, which need a C++ compiler, for bfloat16 on a CPU"""

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        shift: Float[Tensor, "b c"] | None = None,
        act: bool = True,
        drop: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """In x's dtype. `act`: apply SiLU; `drop`: the share of values that become 0, the others growing to make up."""
        if self.compiled and x.dtype == torch.bfloat16 and not x.is_cuda:
            keep = keep_mask(x, drop) if drop else None
            constants = (1 / (1 - drop), self.num_groups, self.eps, act)
            out: Tensor = _CompiledNorm.apply(x, self.weight, self.bias, shift, keep, *constants)  # type: ignore[no-untyped-call]
            return out
        x = super().forward(x if shift is None else x + shift[:, :, None, None])
        return dropout(silu(x) if act else x, drop)


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x sigmoid(x), an element's value not depending on where it stands.

    torch's own (2.13, CPU) rounds otherwise at the end of what does not fill its vectors: a batch's last picture.
    """
    if x.is_cuda or x.numel() % 32 == 0:
        return F.silu(x)
    return x / (1 + torch.exp(-x))


def dropout(x: Float[Tensor, "b c h w"], drop: float) -> Float[Tensor, "b c h w"]:
    """`drop` of the values set to 0, the others grown to make up for it; on a CPU by `keep_mask`."""
    if x.is_cuda or not drop:
        return F.dropout(x, drop)
    return x * (as_images(keep_mask(x, drop), x) * (1 / (1 - drop))).to(x.dtype)


def keep_mask(x: Float[Tensor, "b c h w"], drop: float) -> UInt8[Tensor, "b h*w c"]:
    """0 with probability `drop` (to 1 / 65536), from torch's generator, else 1.

    Four values from each 64 random bits: torch's bernoulli draws a double for each, at 7 times the cost.
    """
    b, c, h, w = x.shape
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()] >= round(drop * 2**16) - 2**15
    return keep.view(torch.uint8).view(b, h * w, c)


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, shift, keep, keep_scale, groups, eps, act):  # type: ignore[no-untyped-def]
        pixels, shift32 = as_pixels(x), None if shift is None else shift.float()
        total, mean, rstd, a, c = _compiled(_affine_of_norm)(pixels, shift32, weight.view(groups, -1), bias, eps)
        ctx.save_for_backward(x, weight, shift32, total, mean, rstd, a, c, keep)
        ctx.constants = keep_scale, act, None if shift is None else shift.dtype
        return as_images(_compiled(_affine_act)(pixels, a, c, keep, keep_scale, act), x)

    @staticmethod
    def backward(ctx: Any, dy):  # type: ignore[no-untyped-def]
        x, weight, shift, total, mean, rstd, a, c, keep = ctx.saved_tensors
        keep_scale, act, shift_dtype = ctx.constants
        pixels, dz = as_pixels(x), as_pixels(dy)
        if act or keep is not None:  # stored in bfloat16: fused with the sums, it would be kept in float32
            dz = _compiled(_act_backward)(dz, pixels, a, c, keep, keep_scale, act)
        slope, level, d_weight, d_bias, d_shift = _compiled(_affine_of_norm_backward)(
            dz, pixels, shift, total, mean, rstd, weight.view(mean.shape[1], -1)
        )
        dx = as_images(_compiled(_affine_backward)(dz, pixels, a, slope, level), x)
        return dx, d_weight, d_bias, None if shift is None else d_shift.to(shift_dtype), None, None, None, None, None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # The few kinds of norm (with a shift, with dropout, of one pixel or many) are more variants than the default of 8.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True, fullgraph=True)
    return compiled


def as_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h*w c"]:
    """The pixels of images; of channels-last ones without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def as_images(pixels: Float[Tensor, "b h*w c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """`as_pixels` undone."""
    b, _, c = pixels.shape
    return pixels.reshape(b, *like.shape[2:], c).permute(0, 3, 1, 2)


def _affine_of_norm(x, shift, weight, bias, eps):  # type: ignore[no-untyped-def]
    """a, c with norm(x + shift) = a x + c, all [b, c]; before them, for backward, the sum and the moments."""
    groups, x = weight.shape[0], x.float()
    n, count = x.shape[1], x.shape[1] * weight.shape[1]
    total, squares = x.sum(1), x.square().sum(1)
    if shift is not None:  # the sums for x + shift, which is nowhere made
        total, squares = total + n * shift, squares + shift * (2 * total + n * shift)
    mean = total.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count
    variance = squares.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count - mean.square()
    rstd = (variance.clamp(min=0) + eps).rsqrt()
    a = rstd * weight
    c = bias - (mean * a).flatten(1)
    a = a.flatten(1)
    return total, mean, rstd, a, c if shift is None else c + a * shift


def _affine_of_norm_backward(dz, x, shift, total, mean, rstd, weight):  # type: ignore[no-untyped-def]
    """slope, level with dx = a dz + slope x + level, all [b, c]; then the gradients of weight, bias and shift."""
    n, count = x.shape[1], x.shape[1] * weight.shape[1]
    dz = dz.float()
    sum_dz, sum_dz_x = dz.sum(1), (dz * x.float()).sum(1)
    if shift is not None:
        sum_dz_x = sum_dz_x + shift * sum_dz
    by_group, by_group_x = (sums.unflatten(1, (weight.shape[0], -1)) for sums in (sum_dz, sum_dz_x))
    sum_dz_normed = (by_group_x - mean * by_group) * rstd
    d_weight, d_bias = sum_dz_normed.sum(0).flatten(), sum_dz.sum(0)
    along = (sum_dz_normed * weight).sum(2, keepdim=True) / count
    across = (by_group * weight).sum(2, keepdim=True) / count
    slope = (-along * rstd.square()).expand_as(by_group)
    level = (-across * rstd - mean * slope).flatten(1)
    slope = slope.flatten(1)
    if shift is None:
        return slope, level, d_weight, d_bias, None
    d_shift = (rstd * weight).flatten(1) * sum_dz + slope * total + n * level
    return slope, level + slope * shift, d_weight, d_bias, d_shift


def _affine_act(x, a, c, keep, keep_scale, act):  # type: ignore[no-untyped-def]
    """dropout(silu(a x + c))."""
    y = x.float() * a[:, None] + c[:, None]
    if act:
        y = y * torch.sigmoid(y)
    if keep is not None:
        y = y * (keep.float() * keep_scale)
    return y.to(x.dtype)


def _act_backward(dy, x, a, c, keep, keep_scale, act):  # type: ignore[no-untyped-def]
    """The gradient at a x + c of dropout(silu(a x + c))."""
    dz = dy.float()
    if act:
        z = x.float() * a[:, None] + c[:, None]
        s = torch.sigmoid(z)
        dz = dz * (s * (1 + z * (1 - s)))
    if keep is not None:
        dz = dz * (keep.float() * keep_scale)
    return dz.to(dy.dtype)


def _affine_backward(dz, x, a, slope, level):  # type: ignore[no-untyped-def]
    """The gradient at x."""
    return (dz.float() * a[:, None] + x.float() * slope[:, None] + level[:, None]).to(x.dtype)
