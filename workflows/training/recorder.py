"""What becomes of the steps of a training: points for MLflow, checkpoints, and the user's progress."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ray.util.queue import Full

from diffusion.flops import matmul_flops_per_s, training_flops
from diffusion.loss_by_time import LossByTime, mean_losses

from ..cluster.machine import machine_metrics
from .background import Background
from .checkpoints import begin_attempt, time_of_progress, write_checkpoint, write_snapshots
from .gauges import Gauges
from .spec import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ray.util.queue import Queue

    from diffusion.checkpoint import Checkpoint
    from diffusion.files import Folder
    from diffusion.training import StepReport, Training

    from ..config import TrainStage

REPORT_INTERVAL_S = 1.0


class Recorder:
    """The hook of every worker that turns steps into reports and checkpoints; rank 0 speaks for all.

    `data_wait_s` says for how many seconds this worker has waited for its data so far; `begun` when the run was
    launched and when this worker began.
    """

    def __init__(
        self,
        stage: TrainStage,
        training: Training,
        run: Folder,
        reports: Queue,
        data_wait_s: Callable[[], float],
        begun: tuple[float, float],
    ) -> None:
        self.stage, self.training, self.run, self.reports = stage, training, run, reports
        self.data_wait_s = data_wait_s
        self.speaks = training.rank == 0
        self.background = Background()
        self.saving_s = 0.0
        """for which saving has held up the training so far"""
        self.attempt, self.flops, self.peak = 0, 0, 1.0
        self.gauges = Gauges(run.uri.rsplit("/", 1)[-1])
        if self.speaks:
            self.attempt = begin_attempt(run)
            self.gauges.begin(self.attempt, time_of_progress(run, training.step))
            self.flops = training_flops(training.unet.config)
            dtype = torch.bfloat16 if training.autocast else torch.float32
            self.peak = matmul_flops_per_s(training.device, dtype)
        self.reported = time.monotonic()
        self.begun = (*begun, time.time())
        self.first_step = training.step + 1
        self._begin_interval()

    def on_step(self, report: StepReport) -> None:
        """Called by every worker after every step."""
        stage, last = self.stage, report.step == self.stage.steps
        self.losses.add(report)
        self.steps += 1
        self.skipped += report.skipped
        if self.speaks and report.step == self.first_step:
            self._send(Report(report.step, self._start_times()))
        if report.step % stage.log_every == 0 or last:
            self._log(report)
        elif self.speaks and time.monotonic() - self.reported > REPORT_INTERVAL_S:
            self._send(Report(report.step))
        if report.step % stage.checkpoint_every == 0 or last:
            self.save()
        if self.speaks and stage.snapshot_every and (report.step % stage.snapshot_every == 0 or last):
            self._save_snapshots()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the last checkpoint. Raises OSError if it could not be written."""
        if kind is None:
            self.background.finish()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Let the write under way end, and try none again."""
        self.background.abandon()

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, while the training goes on."""
        if not self.speaks:
            return
        started = time.monotonic()
        self.background.wait()
        checkpoint = self.training.checkpoint().copied()
        self.background.start(f"checkpoint of step {checkpoint.step}", partial(self._write, checkpoint))
        self.saving_s += time.monotonic() - started

    def _write(self, checkpoint: Checkpoint) -> None:
        folder = write_checkpoint(self.run, self.attempt, checkpoint, self.stage.keep_checkpoints)
        self.gauges.saved()
        self._send(Report(checkpoint.step, saved=folder.uri))

    def _save_snapshots(self) -> None:
        self.background.wait()
        averages = self.training.checkpoint().copied().emas[len(self.stage.ema_decays) :]
        by_std, step = dict(zip(self.stage.ema_stds, averages, strict=True)), self.training.step
        self.background.start(f"snapshots of step {step}", partial(write_snapshots, self.run, step, by_std))

    def _begin_interval(self) -> None:
        self.losses = LossByTime(self.training.diffusion.num_timesteps, self.training.device)
        self.steps = self.skipped = 0
        self.since = time.monotonic()
        self.waits = self.data_wait_s(), self.saving_s

    def _log(self, report: StepReport) -> None:
        """What the interval came to: losses over all workers, times as the first one sees them."""
        totals = self.losses.totals
        dist.all_reduce(totals)
        if self.speaks:
            seconds = time.monotonic() - self.since
            rate = self.steps * self.stage.global_batch / seconds
            speed = rate * self.flops / self.training.num_workers
            data_wait, save_wait = self.data_wait_s() - self.waits[0], self.saving_s - self.waits[1]
            metrics = {
                **mean_losses(totals),
                "grad_norm": report.grad_norm,
                "lr": report.lr,
                "skipped_steps": self.skipped,
                "images_per_s": rate,
                "data_wait": data_wait / seconds,
                "checkpoint_wait": save_wait / seconds,
                "tflops_per_worker": speed / 1e12,
                "mfu": speed / self.peak,
                **machine_metrics(self.training.device),
            }
            self.gauges.point(report.step, metrics)
            self._send(Report(report.step, metrics))
        self._begin_interval()

    def _start_times(self) -> dict[str, float]:
        """Seconds from one mark to the next: what every start and every restart costs before it has done a step."""
        names = ("start/launch_to_worker_s", "start/worker_to_ready_s", "start/ready_to_first_step_s")
        return {name: b - a for name, (a, b) in zip(names, pairwise((*self.begun, time.time())), strict=True)}

    def _send(self, report: Report) -> None:
        self.reported = time.monotonic()
        with suppress(Full):  # a driver that does not listen must not stop the training
            self.reports.put_nowait(report)
