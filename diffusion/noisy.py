"""Batches with all that is random in a step already drawn: timesteps, noise, flips, dropped labels.

Keyed by (seed, step, lane), so that a run is the same for any number of workers, and nothing has to be saved to
continue it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch

from .seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor

    from .data.loader import Batch
    from .process import Diffusion
    from .train_config import TrainConfig
    from .unet import UNet


@dataclass(frozen=True)
class NoisyBatch:
    """A worker's share of a step, with all that is random in it already drawn."""

    step: int
    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, "b"] | None
    t: Int64[Tensor, "b"]
    eps: Float[Tensor, "b c h w"]

    def each(self, change: Callable[[Tensor], Tensor]) -> NoisyBatch:
        """The same change made to all its tensors."""
        labels = None if self.labels is None else change(self.labels)
        return NoisyBatch(self.step, change(self.images), labels, change(self.t), change(self.eps))

    def parts(self, size: int) -> list[NoisyBatch]:
        """The same samples in order, at most `size` in each part; 0: all in one."""
        size = size or len(self.t)
        return [self.each(itemgetter(slice(start, start + size))) for start in range(0, len(self.t), size)]


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
            dropped = torch.from_numpy(np.concatenate(drops))
            labels = labels.masked_fill(dropped | (labels < 0), model.config.num_classes)  # without one: of any class
        t, noise = torch.from_numpy(np.concatenate(ts)), torch.from_numpy(np.concatenate(eps))
        yield NoisyBatch(batch.step, images, labels, t, noise)


def pinned(batches: Iterable[NoisyBatch]) -> Iterator[NoisyBatch]:
    """The same in page-locked memory, from which a GPU copies while it computes. Made for a prefetch thread, too."""
    return (batch.each(lambda tensor: tensor.pin_memory()) for batch in batches)
