"""What runs in every Ray Train worker: build, resume, fit, and tell the driver how it goes."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from diffusion.checkpoint import load_weights, read_tensors
from diffusion.data.loader import Prefetch, SampleReader, batches, keys_of_step
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from diffusion.noisy import draw_noise, pinned
from diffusion.patience import patiently
from diffusion.process import Diffusion
from diffusion.seeding import key
from diffusion.training import StepReport, Training, fit
from diffusion.unet import UNet

from ..cluster.on_worker import on_worker
from .checkpoints import newest_checkpoint, newest_name, reason_to_stop, stop_launch
from .recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.util.queue import Queue
    from torch import nn

    from ..config import TrainStage
    from .spec import TrainingSpec


@on_worker
def train_worker(spec: TrainingSpec, reports: Queue) -> None:
    """Train from the newest checkpoint to the last step, as one of the workers of the group.

    Rank 0 puts a `Report` into `reports` now and then. What another try would meet again (bad data, a loss that is
    not finite) is put down for the driver: the workers that Ray then starts anew have nothing to do.
    """
    run = Folder(spec.run_uri)
    if reason_to_stop(run, spec.launch):
        return
    try:
        _train(spec, run, reports)
    except ValueError as err:
        stop_launch(run, spec.launch, str(err))
        raise


def _train(spec: TrainingSpec, run: Folder, reports: Queue) -> None:
    begun = spec.launched, time.time()
    context, stage = ray.train.get_context(), spec.stage
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(stage.cpus_per_worker)))
    unet, diffusion = _network(spec, run, device), Diffusion(spec.diffusion)
    wrap = partial(_wrapped, stage, device)
    training = Training(unet, diffusion, stage, rank, num_workers, wrap, stage.micro_batch)
    if (checkpoint := patiently(partial(newest_checkpoint, run))) is not None:
        training.resume(checkpoint)
    _same_step_everywhere(training.step)
    reader = SampleReader(patiently(partial(open_shard_set, Folder(spec.data_uri))), config=stage)
    with closing(batches(reader, stage, training.step, stage.steps, rank, num_workers)) as ours:
        noisy = draw_noise(ours, stage, unet, diffusion)
        with (
            Prefetch(pinned(noisy) if device.type == "cuda" else noisy) as ahead,
            Recorder(stage, training, run, reports, lambda: ahead.waited_s, begun) as recorder,
        ):
            try:
                fit(training, ahead, _saving_before_the_node_goes(recorder))
            except FloatingPointError as err:
                raise ValueError(_explained(err, spec, training, reader, run, recorder)) from err


def _network(spec: TrainingSpec, run: Folder, device: torch.device) -> UNet:
    """The network at its start, given or random, the same on every worker, made ready for the hardware."""
    torch.manual_seed(key(spec.stage.seed, "init") % 2**63)
    unet = UNet(spec.unet)
    if spec.start:
        load_weights(unet, read_tensors(patiently(partial(run.read, spec.start)), f"{run.uri}/{spec.start}"))
    unet.to(device)
    unet.checkpointing = spec.stage.gradient_checkpointing
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif spec.stage.compile:
        unet.compile_norms()
    return unet


def _wrapped(stage: TrainStage, device: torch.device, module: nn.Module) -> nn.Module:
    """For DDP; on a GPU compiled first, if that is wanted (on a CPU only the norms are)."""
    return DistributedDataParallel(torch.compile(module) if stage.compile and device.type == "cuda" else module)


def _saving_before_the_node_goes(recorder: Recorder) -> Callable[[StepReport], None]:
    """Record every step; and a checkpoint at once, when Ray has had notice that a node of ours is to be taken away."""
    given_notice = False

    def on_step(report: StepReport) -> None:
        nonlocal given_notice
        recorder.on_step(report)
        # Ray lets the workers wait for each other here: not at every step, and never at some workers only.
        if report.step % recorder.stage.log_every or given_notice or not ray.train.get_preemption_info():
            return
        given_notice = True
        recorder.save()

    return on_step


def _explained(
    err: FloatingPointError, spec: TrainingSpec, training: Training, reader: SampleReader, run: Folder, to: Recorder
) -> str:
    """What to look at after a step that could not be trained on. All workers are here; the first one writes it down."""
    name = f"bad-step-{training.step:08d}.json"
    if training.rank == 0:
        to.abandon()  # after the checkpoint that is being written
        run.write_json(name, {"step": training.step, "keys": keys_of_step(reader, spec.stage, training.step)})
    dist.barrier()
    last = newest_name(run)
    return (
        f"{err}; the keys of its samples are in {run.uri}/{name}, "
        f"the last good checkpoint is {f'{run.uri}/{last}' if last else 'none'}"
    )


def _same_step_everywhere(step: int) -> None:
    """Workers that resumed at different steps would wait for each other for ever; raises RuntimeError instead."""
    steps: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"workers found different newest checkpoints, at steps {steps}; trying again")
