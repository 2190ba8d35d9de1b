"""The training loop. It knows nothing of Ray: batches come in, reports go out, and DDP is somebody's `wrap`.

Dropout is seeded by (seed, step, rank); all else that is random came with the batch (see `noisy`).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .checkpoint import Checkpoint, load_weights
from .ema import Ema
from .loss import loss
from .process import to_unit_range
from .seeding import key
from .train_config import learning_rate, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from jaxtyping import Float, Int64
    from torch import Tensor, nn

    from .noisy import NoisyBatch
    from .process import Diffusion
    from .train_config import TrainConfig
    from .unet import UNet

MAX_SKIPPED_IN_A_ROW = 10
"""more is not an accident: the weights have left the numbers that can be trained on"""


@dataclass(frozen=True)
class StepReport:
    """What a step did, on this worker."""

    step: int
    """optimiser steps done, this one included"""
    loss: Float[Tensor, ""]
    """this worker's share; the mean over workers is the mean over the global batch"""
    losses: Float[Tensor, "b"]
    """of each of its samples"""
    t: Int64[Tensor, "b"]
    """their timesteps"""
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
        micro_batch: int = 0,
    ) -> None:
        """`micro_batch`: samples that the network is given at once, which bounds its memory; 0: all of a share."""
        self.unet, self.diffusion, self.config = unet, diffusion, config
        self.rank, self.num_workers, self.micro_batch = rank, num_workers, micro_batch
        self.device = next(unet.parameters()).device
        self.network = wrap(unet)
        self.emas = [Ema(unet, profile) for profile in config.ema_profiles()]
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=config.lr, fused=True)
        self.autocast = resolve_precision(config.precision, self.device) == "bf16"
        self.step = 0
        self.skipped_in_a_row = 0

    def gathering(self) -> AbstractContextManager[None]:
        """Around a backward pass whose gradient is added to by another before the workers exchange theirs."""
        unsynced: AbstractContextManager[None] = getattr(self.network, "no_sync", nullcontext)()
        return unsynced

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
            backward(training, batch)
        on_step(train_step(training, batch))


def train_step(training: Training, batch: NoisyBatch) -> StepReport:
    """Forward, backward, clip, update and average.

    A step whose gradient is not finite is skipped, or raises FloatingPointError before anything is updated, as
    `on_nan` says. The gradient is that of the global batch: all workers do the same.
    """
    config = training.config
    training.optimizer.zero_grad()
    losses = backward(training, batch)
    share = losses.sum() * _scale(training)
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
    return StepReport(training.step, share, losses, batch.t, grad_norm, lr, skipped)


def backward(training: Training, batch: NoisyBatch) -> Float[Tensor, "b"]:
    """Add the gradient of this worker's share of the global batch's mean loss; the loss of each of its samples."""
    torch.manual_seed(key(training.config.seed, "dropout", step=batch.step, lane=training.rank) % 2**63)
    *most, last = batch.parts(training.micro_batch)
    with training.gathering():
        losses = [_backward(training, part) for part in most]
    return torch.cat([*losses, _backward(training, last)])


def _backward(training: Training, part: NoisyBatch) -> Float[Tensor, "b"]:
    there = part.each(lambda tensor: tensor.to(training.device, non_blocking=True))
    x0 = to_unit_range(there.images)
    losses = loss(training.diffusion, _autocast(training), x0, there.t, there.eps, there.labels)
    (losses.sum() * _scale(training)).backward()
    return losses.detach()


def _scale(training: Training) -> float:
    """Of a sum of losses: 1 / B makes it the global batch's mean, and W makes up for DDP, which divides by W."""
    return training.num_workers / training.config.global_batch


def _autocast(training: Training) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.autocast):
            output: Tensor = training.network(x_t, t, labels)
        return output

    return network
