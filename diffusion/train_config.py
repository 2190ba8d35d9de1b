"""What a training run is asked to be: all that affects its result, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from .data.order import OrderConfig
from .ema import fixed, power

if TYPE_CHECKING:
    from .ema import Profile

Precision = Literal["auto", "fp32", "bf16"]
Decay = Literal["constant", "linear", "cosine"]
OnNan = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OrderConfig):
    """Everything about the optimisation that affects the result."""

    steps: int = 1000
    """optimiser steps"""
    lr: float = 2e-4
    """Adam's learning rate, after the warm-up"""
    warmup_steps: int = 100
    """over which the learning rate grows from 0"""
    decay: Decay = "constant"
    """of the learning rate after the warm-up: none, or in a line or along a cosine to 0 at the last step"""
    grad_clip: float = 1.0
    """largest norm of the gradient"""
    ema_decays: tuple[float, ...] = (0.9999,)
    """averages of the weights to keep, by their decay; the first average is what is sampled"""
    ema_stds: tuple[float, ...] = ()
    """power-function averages to keep, by their relative width; with snapshots, any other can be made of two of them"""
    flip: bool = True
    """mirror half of the pictures"""
    label_dropout: float = 0.1
    """share of the labels replaced by the null class, which guidance needs"""
    precision: Precision = "auto"
    """of the network: bf16 (autocast), fp32, or auto: bf16 where the hardware multiplies it"""
    on_nan: OnNan = "stop"
    """a loss or gradient that is not finite is never trained on: stop the run, or skip the step (10 in a row stop)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, got {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if self.decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {', '.join(get_args(Decay))}, got {self.decay!r}")
        if not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be above 0, got {self.grad_clip}")
        if not self.ema_profiles():  # raises for those out of range
            raise ValueError("ema_decays or ema_stds must name at least one average, got none")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.on_nan not in get_args(OnNan):
            raise ValueError(f"on_nan must be one of {', '.join(get_args(OnNan))}, got {self.on_nan!r}")

    def ema_profiles(self) -> list[Profile]:
        """Those of the averages to keep, in the order of a checkpoint's. Raises ValueError for impossible ones."""
        return [*map(fixed, self.ema_decays), *map(power, self.ema_stds)]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` made definite: bf16 on a GPU, and on a CPU if this one has AVX512-BF16.

    The GPU is not looked at: the driver that decides may have none.
    """
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() else "fp32"


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of step 0 … steps-1: linear warm-up, then constant, or a decay that would reach 0 one step after the last."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    done = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.lr * warm * left[config.decay]
