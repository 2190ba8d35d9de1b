"""What runs in every Ray Train worker: build, resume, fit, and tell the driver how it goes."""

from __future__ import annotations

import math
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.util.queue import Full, Queue
from torch.nn.parallel import DistributedDataParallel

from diffusion.data.loader import Prefetch, SampleReader, batches
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from diffusion.process import Diffusion
from diffusion.seeding import key
from diffusion.training import StepReport, Training, draw_noise, fit, pinned
from diffusion.unet import UNet

from .checkpoints import begin_attempt, newest_checkpoint, write_checkpoint, write_snapshots

if TYPE_CHECKING:
    from torch import nn

    from diffusion.training import NoisyBatch

    from .config import TrainStage
    from .training_spec import TrainingSpec

REPORT_INTERVAL_S = 0.5


def train_worker(spec: TrainingSpec, reports: Queue) -> None:
    """Train from the newest checkpoint to the last step, as one of the workers of the group.

    Rank 0 puts (steps done, metrics to log or None) into `reports`.
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
    reader = SampleReader(open_shard_set(Folder(spec.data_uri)), config=spec.stage)
    with closing(batches(reader, spec.stage, training.step, spec.stage.steps, rank, num_workers)) as ours:
        noisy = draw_noise(ours, spec.stage, unet, diffusion)
        with Prefetch(pinned(noisy) if device.type == "cuda" else noisy) as ahead:
            fit(training, ahead, Recorder(spec.stage, training, run, reports, ahead).on_step)


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


class Recorder:
    """Counts, averages and saves: the hook that turns steps into reports and checkpoints."""

    def __init__(
        self, stage: TrainStage, training: Training, run: Folder, reports: Queue, ahead: Prefetch[NoisyBatch]
    ) -> None:
        self.stage, self.training, self.run, self.reports, self.ahead = stage, training, run, reports, ahead
        self.attempt = begin_attempt(run) if training.rank == 0 else 0
        self.losses: list[torch.Tensor] = []
        self.skipped = 0
        self.waited_s = 0.0
        self.since = self.reported = time.monotonic()

    def on_step(self, report: StepReport) -> None:
        """Called by every worker after every step; rank 0 speaks for all."""
        stage = self.stage
        if not report.skipped:
            self.losses.append(report.loss)
        self.skipped += report.skipped
        last = report.step == stage.steps
        if report.step % stage.log_every == 0 or last:
            self._log(report)
        elif self.training.rank == 0 and time.monotonic() - self.reported > REPORT_INTERVAL_S:
            self._send(report.step, None)
        if self.training.rank == 0 and (report.step % stage.checkpoint_every == 0 or last):
            write_checkpoint(self.run, self.attempt, self.training.checkpoint(), stage.keep_checkpoints)
        if self.training.rank == 0 and stage.snapshot_every and (report.step % stage.snapshot_every == 0 or last):
            averages = [ema.state_dict() for ema in self.training.emas[len(stage.ema_decays) :]]
            write_snapshots(self.run, report.step, dict(zip(stage.ema_stds, averages, strict=True)))

    def _log(self, report: StepReport) -> None:
        """The mean loss over the interval and the workers, the rate, and the share of it spent waiting for data."""
        loss = torch.stack(self.losses).mean() if self.losses else torch.full((), math.nan, device=report.loss.device)
        dist.all_reduce(loss)
        elapsed, steps = time.monotonic() - self.since, len(self.losses) + self.skipped
        skipped, self.losses, self.skipped, self.since = self.skipped, [], 0, time.monotonic()
        waited_s, self.waited_s = self.ahead.waited_s - self.waited_s, self.ahead.waited_s
        if self.training.rank == 0:
            metrics = {
                "loss": loss.item() / self.training.num_workers,
                "grad_norm": report.grad_norm,
                "lr": report.lr,
                "skipped_steps": skipped,
                "images_per_s": steps * self.stage.global_batch / elapsed,
                "data_wait": min(1.0, waited_s / elapsed),
            }
            self._send(report.step, metrics)

    def _send(self, step: int, metrics: dict[str, float] | None) -> None:
        self.reported = time.monotonic()
        with suppress(Full):  # a driver that does not listen must not stop the training
            self.reports.put_nowait((step, metrics))


def _same_step_everywhere(step: int) -> None:
    """Workers that resumed at different steps would wait for each other for ever; raises RuntimeError instead."""
    steps: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"workers found different newest checkpoints, at steps {steps}; trying again")
