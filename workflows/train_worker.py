"""What runs in every Ray Train worker: build, resume, fit, and tell the driver how it goes."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.util.queue import Full, Queue
from torch.nn.parallel import DistributedDataParallel

from diffusion.data.loader import SampleReader, batches, prefetch
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from diffusion.noisy import draw_noise, pinned
from diffusion.process import Diffusion
from diffusion.seeding import key
from diffusion.training import StepReport, Training, fit
from diffusion.unet import UNet

from .checkpoints import begin_attempt, newest_checkpoint, write_checkpoint, write_snapshots

if TYPE_CHECKING:
    from torch import nn

    from .config import TrainStage
    from .training_spec import TrainingSpec

def train_worker(spec: TrainingSpec, reports: Queue) -> None:
    """Train from the newest checkpoint to the last step, as one of the workers of the group.

    Rank 0 puts a `Report` into `reports` now and then.
    """
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(spec.stage.cpus_per_worker)))
    unet, diffusion = _network(spec, device), Diffusion(spec.diffusion)
    training = Training(unet, diffusion, spec.stage, rank, num_workers, partial(_wrapped, spec.stage, device))
    run = Folder(spec.run_uri)
    if (checkpoint := newest_checkpoint(run)) is not None:
        training.resume(checkpoint)
    _same_step_everywhere(training.step)
    recorder = Recorder(spec.stage, training, run, reports)
    reader = SampleReader(open_shard_set(Folder(spec.data_uri)))
    ours = batches(reader, spec.stage, training.step, spec.stage.steps, rank, num_workers)
    noisy = draw_noise(ours, spec.stage, unet, diffusion)
    fit(training, prefetch(pinned(noisy) if device.type == "cuda" else noisy), recorder.on_step)


def _network(spec: TrainingSpec, device: torch.device) -> UNet:
    """The network at its random start, the same on every worker, made ready for the hardware."""
    torch.manual_seed(key(spec.stage.seed, "init") % 2**63)
    unet = UNet(spec.unet).to(device)
    unet.checkpointing = spec.stage.gradient_checkpointing
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif spec.stage.compile:
        unet.compile_norms()
    return unet


def _wrapped(stage: TrainStage, device: torch.device, module: nn.Module) -> nn.Module:
    """For DDP; on a GPU compiled first, if that is wanted (on a CPU only the norms are)."""
    return DistributedDataParallel(torch.compile(module) if stage.compile and device.type == "cuda" else module)


def _same_step_everywhere(step: int) -> None:
    """Workers that resumed at different steps would wait for each other for ever; raises RuntimeError instead."""
    steps: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"workers found different newest checkpoints, at steps {steps}; trying again")
