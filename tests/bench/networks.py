"""The same CIFAR-10 network as others build it, with their own training steps."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from diffusion.layers import Pointwise, Upsample
from diffusion.unet import UNet, UNetConfig

if TYPE_CHECKING:
    from collections.abc import Callable

LUCIDRAINS_LIKE_OURS = (144, (1, 2, 2, 2))
"""35,969,475 parameters, 5.64e9 multiplications a picture; ours has 35,746,307 and 5.80e9"""
LUCIDRAINS_USUAL = (64, (1, 2, 4, 8))
"""the README's: 35,711,491 parameters, but 1.83e9 multiplications, as most of them are where pictures are small"""
LR, EMA_DECAY, CLIP = 2e-4, 0.9999, 1.0


def diffusers_unet() -> nn.Module:
    """Ho et al.'s network as a UNet2DModel: 35,746,307 parameters."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        attention_head_dim=None,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        dropout=0.1,
    )


def diffusers_step(x0: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """A step as in diffusers' own training example: add_noise, mse, clip, AdamW, EMAModel."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    unet, scheduler = diffusers_unet().to(x0.device).train(), DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR)
    ema = EMAModel(unet.parameters(), decay=EMA_DECAY)

    def step() -> None:
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        x_t = scheduler.add_noise(x0, noise, t)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=bf16):
            loss = F.mse_loss(unet(x_t, t, return_dict=False)[0], noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return step


def lucidrains_step(x0: torch.Tensor, bf16: bool, shape: tuple[int, tuple[int, ...]]) -> Callable[[], None]:
    """A step of denoising-diffusion-pytorch's Trainer, with its network of this width and these multiples of it."""
    _without_torchvision()
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    unet = Unet(dim=shape[0], dim_mults=shape[1], dropout=0.1)
    diffusion = GaussianDiffusion(unet, image_size=32, timesteps=1000).to(x0.device).train()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=LR, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=EMA_DECAY, update_every=10)
    images = (x0 + 1) / 2

    def step() -> None:
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=bf16):
            loss = diffusion(images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step


def _without_torchvision() -> None:
    """A stand-in for torchvision where it cannot be imported (its wheels are for other builds of torch).

    denoising-diffusion-pytorch imports it at its top and uses it for reading and writing pictures, not in a step.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError):
        names = ("torchvision", "torchvision.transforms", "torchvision.utils", "torchvision.models")
        modules = {name: types.ModuleType(name) for name in names}
        for name in names[1:]:
            setattr(modules["torchvision"], name.rpartition(".")[2], modules[name])
        sys.modules.update(modules)


def floor_step(
    batch: int, device: torch.device, backward: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], None]:
    """The network's convolutions and linears alone, channels-last: what remains if all else costs nothing."""
    layers = [_prepared(module, shape, batch, device, dtype, backward) for module, shape in _products()]

    def step() -> None:
        for apply, x, weight, bias in layers:
            y = apply(x, weight, bias)
            if backward:
                y.backward(y.detach())
                x.grad = weight.grad = bias.grad = None

    return step


def _products() -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Every convolution and linear of the canonical network, with the shape of one picture's input to it."""
    unet, found = UNet(UNetConfig()).eval(), []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        _, *shape = inputs[0].shape
        if isinstance(module, Upsample):  # its convolution, at the doubled size
            found.append((module.conv, (shape[0], 2 * shape[1], 2 * shape[2])))
        elif isinstance(module, Pointwise):
            found.append((module, (shape[1], shape[2], shape[0])))
        else:
            found.append((module, tuple(shape)))

    doubling = {module.conv for module in unet.modules() if isinstance(module, Upsample)}
    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Upsample) and module not in doubling:
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        unet(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    return found


def _prepared(
    module: nn.Module,
    shape: tuple[int, ...],
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    backward: bool,
) -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    is_conv = isinstance(module, nn.Conv2d)
    layout = {"memory_format": torch.channels_last} if is_conv else {}
    x = torch.randn(batch, *shape, device=device).to(dtype).contiguous(**layout)
    weight = module.weight.detach().to(device, dtype).contiguous(**layout)
    bias = module.bias.detach().to(device, dtype)
    for tensor in (x, weight, bias):
        tensor.requires_grad_(backward)
    if not is_conv:
        return F.linear, x, weight, bias
    return lambda x, w, b: F.conv2d(x, w, b, module.stride, module.padding), x, weight, bias
