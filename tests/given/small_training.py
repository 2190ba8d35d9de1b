"""A training small enough for many in a test, and what is compared of two."""

import math

import numpy as np
import torch

from diffusion.data.loader import Batch
from diffusion.data.order import lanes_of
from diffusion.noisy import draw_noise
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.seeding import generator
from diffusion.train_config import TrainConfig
from diffusion.training import Training, backward, fit
from diffusion.unet import UNet, UNetConfig

NUM_LANES = 8


def network(num_classes=0, dropout=0.0, seed=0, **options):
    """A small network with no weight at zero, so that every gradient is alive."""
    shape = {"image_size": 8, "base_channels": 8, "norm_groups": 4, "channel_mults": (1, 2), "num_res_blocks": 1}
    unet = UNet(UNetConfig(num_classes=num_classes, dropout=dropout, **{**shape, **options}))
    draws = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    return unet


def train_config(**options):
    defaults = {"global_batch": 16, "num_lanes": NUM_LANES, "precision": "fp32", "warmup_steps": 2, "lr": 1e-3}
    return TrainConfig(**{**defaults, **options})


def batch(step, config, rank=0, num_workers=1, num_classes=0):
    """A worker's share of a global batch whose pictures depend on step and lane alone."""
    lanes, images, labels = lanes_of(rank, num_workers, config.num_lanes), [], []
    for lane in lanes:
        draw = generator(0, "test pictures", step=step, lane=lane)
        images.append(draw.integers(0, 256, (config.lane_batch, 3, 8, 8), dtype=np.uint8))
        labels.append(draw.integers(0, max(1, num_classes), config.lane_batch))
    return Batch(
        step,
        lanes,
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(np.concatenate(labels)) if num_classes else None,
    )


def noisy(unet, config, start=0, stop=1, **share):
    steps = (batch(step, config, num_classes=unet.config.num_classes, **share) for step in range(start, stop))
    return draw_noise(steps, config, unet, Diffusion(DiffusionConfig()))


def training_of(unet, config, rank=0, num_workers=1, micro_batch=0):
    return Training(unet, Diffusion(DiffusionConfig()), config, rank, num_workers, micro_batch=micro_batch)


def train(training, start, stop, on_step=lambda report: None):
    fit(training, noisy(training.unet, training.config, start, stop), on_step)
    return training


def snapshot(training):
    """Copies of everything that a step changes: weights, averages and the optimiser's state."""
    checkpoint = training.checkpoint()
    groups = [checkpoint.model, *checkpoint.emas, checkpoint.optimizer]
    return checkpoint.step, [{name: tensor.clone() for name, tensor in group.items()} for group in groups]


def bitwise_equal(a, b):
    (step_a, groups_a), (step_b, groups_b) = a, b
    return step_a == step_b and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
        for x, y in zip(groups_a, groups_b, strict=True)
    )


def gradient(config, num_workers, num_classes=0, micro_batch=0):
    """What DDP would give: the mean over workers of the gradients of their shares."""
    total = None
    for rank in range(num_workers):
        unet = network(num_classes)
        training = training_of(unet, config, rank, num_workers, micro_batch)
        backward(training, next(noisy(unet, config, rank=rank, num_workers=num_workers)))
        flat = torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])
        total = flat if total is None else total + flat
    return total / num_workers


def with_bad_step(training, start, stop, bad_step):
    """The batches of a run; of one step, one sample's noise is not a number."""
    for drawn in noisy(training.unet, training.config, start, stop):
        if drawn.step == bad_step:
            drawn.eps[3] = math.nan
        yield drawn
