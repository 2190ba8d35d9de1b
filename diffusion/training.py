"""The training loop. It knows nothing of Ray: batches come in, reports go out, and DDP is somebody's `wrap`.

What is random in a step (noise, timesteps, flips, dropped labels) is keyed by (seed, step, lane), so that a run
is the same for any number of workers; dropout by (seed, step, rank). Nothing has to be saved to continue it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from .checkpoint import Checkpoint, load_weights
from .data.order import OrderConfig
from .ema import Ema, fixed, power
from .loss import loss
from .process import Diffusion, to_unit_range
from .seeding import generator, key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor, nn

    from .data.loader import Batch
    from .ema import Profile
    from .unet import UNet

Precision = Literal["auto", "fp32", "bf16"]
Decay = Literal["constant", "linear", "cosine"]
OnNan = Literal["stop", "skip"]
MAX_SKIPPED_IN_A_ROW = 10
"""more is not an accident: the weights have left the numbers that can be trained on"""


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


@dataclass(frozen=True)
class NoisyBatch:
    """A worker's share of a step, with all that is random in it already drawn."""

    step: int
    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, "b"] | None
    t: Int64[Tensor, "b"]
    eps: Float[Tensor, "b c h w"]


def draw_noise(
    batches: Iterable[Batch], config: TrainConfig, model: UNet, diffusion: Diffusion
) -> Iterator[NoisyBatch]:
    """Timesteps, noise, flips and dropped labels of each batch, lane by lane. Made for a prefetch thread: CPU only."""
    for batch in batches:
        shape = (config.lane_batch, *batch.images.shape[1:])
        ts, eps, flips, drops = [], [], [], []
        for lane in batch.lanes:
            draw = generator(config.seed, "noise", step=batch.step, lane=lane)
            ts.append(draw.integers(diffusion.num_timesteps, size=config.lane_batch))
            eps.append(draw.standard_normal(shape, dtype=np.float32))
            flips.append(draw.random(config.lane_batch) < 0.5 * config.flip)
            drops.append(draw.random(config.lane_batch) < config.label_dropout)
        images, flip = batch.images, torch.from_numpy(np.concatenate(flips))
        if config.flip:
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        labels = batch.labels
        if labels is not None:
            labels = labels.masked_fill(torch.from_numpy(np.concatenate(drops)), model.config.num_classes)
        t, noise = torch.from_numpy(np.concatenate(ts)), torch.from_numpy(np.concatenate(eps))
        yield NoisyBatch(batch.step, images, labels, t, noise)


def pinned(batches: Iterable[NoisyBatch]) -> Iterator[NoisyBatch]:
    """The same in page-locked memory, from which a GPU copies while it computes. Made for a prefetch thread, too."""
    for batch in batches:
        labels = None if batch.labels is None else batch.labels.pin_memory()
        yield NoisyBatch(batch.step, batch.images.pin_memory(), labels, batch.t.pin_memory(), batch.eps.pin_memory())


@dataclass(frozen=True)
class StepReport:
    """What a step did, on this worker."""

    step: int
    """optimiser steps done, this one included"""
    loss: Float[Tensor, ""]
    """this worker's share; the mean over workers is the mean over the global batch"""
    grad_norm: float
    """of the whole gradient, before clipping"""
    lr: float
    skipped: bool = False
    """the loss or gradient was not finite, and the weights were left as they were"""


class Training:
    """A network in training: its averages, its optimiser and how far it is."""

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        config: TrainConfig,
        rank: int = 0,
        num_workers: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.unet, self.diffusion, self.config = unet, diffusion, config
        self.rank, self.num_workers = rank, num_workers
        self.device = next(unet.parameters()).device
        self.network = wrap(unet)
        self.emas = [Ema(unet, profile) for profile in config.ema_profiles()]
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=config.lr, fused=True)
        self.autocast = resolve_precision(config.precision, self.device) == "bf16"
        self.step = 0
        self.skipped_in_a_row = 0

    def checkpoint(self) -> Checkpoint:
        """This moment, to be saved. The tensors are the live ones: save before the next step."""
        optimizer = {
            f"{name}/{slot}": value
            for name, parameter in self.unet.named_parameters()
            for slot, value in self.optimizer.state[parameter].items()
        }
        emas = [ema.state_dict() for ema in self.emas]
        return Checkpoint(self.step, dict(self.unet.state_dict()), emas, optimizer, {})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, exactly. Raises ValueError if it is of another network."""
        load_weights(self.unet, checkpoint.model)
        for ema, averages in zip(self.emas, checkpoint.emas, strict=True):
            ema.load(averages, num_updates=checkpoint.step)
        for name, parameter in self.unet.named_parameters():
            if f"{name}/step" not in checkpoint.optimizer:
                continue  # every step so far was skipped
            for slot in ("exp_avg", "exp_avg_sq"):  # in the parameter's own memory layout, which the fused step needs
                value = torch.empty_like(parameter).copy_(checkpoint.optimizer[f"{name}/{slot}"])
                self.optimizer.state[parameter][slot] = value.detach()
            self.optimizer.state[parameter]["step"] = checkpoint.optimizer[f"{name}/step"].clone().to(self.device)
        self.step = checkpoint.step


def fit(training: Training, batches: Iterable[NoisyBatch], on_step: Callable[[StepReport], None]) -> None:
    """Train on the batches, telling `on_step` of each. Raises FloatingPointError as `train_step` does."""
    training.unet.train()
    for number, batch in enumerate(batches):
        if number == 0:
            # DDP lays out its buckets anew after the first backward, which changes the order of its sums: one
            # discarded backward makes every attempt, first or resumed, add up in the same order.
            share_of_loss(training, batch).backward()
        on_step(train_step(training, batch))


def train_step(training: Training, batch: NoisyBatch) -> StepReport:
    """Forward, backward, clip, update and average.

    A step whose gradient is not finite is skipped, or raises FloatingPointError before anything is updated, as
    `on_nan` says. The gradient is that of the global batch: all workers do the same.
    """
    config = training.config
    share = share_of_loss(training, batch)
    training.optimizer.zero_grad()
    share.backward()
    grad_norm = float(torch.nn.utils.clip_grad_norm_(training.unet.parameters(), config.grad_clip))
    skipped = not math.isfinite(grad_norm)
    training.skipped_in_a_row = training.skipped_in_a_row + 1 if skipped else 0
    if training.skipped_in_a_row > (0 if config.on_nan == "stop" else MAX_SKIPPED_IN_A_ROW):
        raise FloatingPointError(
            f"loss {share.item():.4g} or gradient norm {grad_norm:.4g} is not finite at step {batch.step}, "
            f"{training.skipped_in_a_row} in a row; lower lr={config.lr}, or look at the data of this step"
        )
    lr = learning_rate(batch.step, config)
    training.optimizer.param_groups[0]["lr"] = lr
    if not skipped:
        training.optimizer.step()
    for ema in training.emas:
        ema.update()
    training.step = batch.step + 1
    return StepReport(training.step, share.detach(), grad_norm, lr, skipped)


def share_of_loss(training: Training, batch: NoisyBatch) -> Float[Tensor, ""]:
    """This worker's part of the mean loss over the global batch, times W, since DDP divides the sum by W."""
    torch.manual_seed(key(training.config.seed, "dropout", step=batch.step, lane=training.rank) % 2**63)
    x0 = to_unit_range(batch.images.to(training.device, non_blocking=True))
    labels = None if batch.labels is None else batch.labels.to(training.device, non_blocking=True)
    t, eps = batch.t.to(training.device, non_blocking=True), batch.eps.to(training.device, non_blocking=True)
    losses = loss(training.diffusion, _autocast(training), x0, t, eps, labels)
    return losses.sum() * (training.num_workers / training.config.global_batch)


def _autocast(training: Training) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.autocast):
            output: Tensor = training.network(x_t, t, labels)
        return output

    return network
