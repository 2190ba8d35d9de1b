"""How much computing a network is, and how much a device can do: what the use made of it is measured against."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from .unet import UNet

if TYPE_CHECKING:
    from .unet import UNetConfig

BACKWARD_COST = 2
"""of a backward pass, in forward passes: the gradients by inputs and by weights (Chowdhery et al. 2022, app. B)"""
SIDE = {"cpu": 1024, "cuda": 8192}
ROUNDS = 5


def training_flops(config: UNetConfig) -> int:
    """Floating-point operations of the matrix products and convolutions that train on one picture (2 a multiply-add).

    Recomputing blocks (gradient checkpointing) is not counted: as usual for MFU, it is a cost and no use.
    """
    with torch.device("meta"):
        unet = UNet(config)
        x_t = torch.empty(1, config.image_channels, config.image_size, config.image_size)
        t = torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            unet(x_t, t, t if config.num_classes else None)
    return (1 + BACKWARD_COST) * int(counter.get_total_flops())


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """What a large square matrix product reaches here, in operations a second: the best of a few.

    Measured, not looked up: a CPU has no data sheet, and it counts this process' threads only.
    """
    side = SIDE[device.type]
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
