"""Training on Ray Train: the worker group, its room in the cluster, and what it reports."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue

from .cluster import connected
from .progress import Bar, say
from .storage import JobFailed
from .train_worker import train_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .config import TrainStage
    from .storage import Environment
    from .training_spec import TrainingSpec

    LogMetrics = Callable[[dict[str, float], int], None]

REPORTS_KEPT = 1000


def fit_on_ray(spec: TrainingSpec, environment: Environment, done: int, log_metrics: LogMetrics) -> None:
    """Train from step `done` to the last, leaving the checkpoints in the run's folder; `log_metrics(values, step)`.

    Raises ValueError if the cluster has no room for the workers, JobFailed if they fail more than `max_failures` times.
    """
    stage = spec.stage
    if done:
        say(f"train: going on from the checkpoint at step {done} of {stage.steps}")
    resources = {"CPU": stage.cpus_per_worker, **({"GPU": 1} if stage.use_gpu else {})}
    with connected(environment, stage):
        check_room(ray.cluster_resources(), resources, stage.num_workers)
        reports = Queue(REPORTS_KEPT, actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            partial(train_worker, spec, reports),
            scaling_config=ScalingConfig(
                num_workers=stage.num_workers, use_gpu=stage.use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=spec.run_uri.rsplit("/", 1)[-1],
                storage_path=(environment.folder / "train/ray").uri,
                failure_config=FailureConfig(max_failures=stage.max_failures),
                worker_runtime_env={"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},
            ),
        )
        with _listening(reports, stage, done, log_metrics):
            try:
                trainer.fit()
            except TrainingFailedError as err:
                raise JobFailed(_first_failure(err)) from err


def check_room(have: dict[str, float], each: dict[str, float], num_workers: int) -> None:
    """Raises ValueError for what the cluster does not have; Ray would wait for it for ever."""
    for name, amount in each.items():
        if amount * num_workers > have.get(name, 0):
            raise ValueError(
                f"num_workers={num_workers} with {amount:g} {name} each take {amount * num_workers:g}, but the cluster "
                f"has {have.get(name, 0):g}; give fewer --num-workers, or a cluster with more"
            )


@contextmanager
def _listening(reports: Queue, stage: TrainStage, done: int, log_metrics: LogMetrics) -> Iterator[None]:
    """Draw the progress and log the metrics that the workers report, in a thread, until the block ends."""
    batch = stage.global_batch
    over = threading.Event()

    def listen() -> None:
        note = ""
        with Bar("train", stage.steps * batch, "img", done=done * batch) as bar:
            while True:
                try:
                    step, metrics = reports.get(timeout=0.5)
                except Empty:
                    if over.is_set():
                        return
                    continue
                if metrics is not None:
                    log_metrics(metrics, step)
                    note = f"loss {metrics['loss']:.4f}"
                bar.update(step * batch, f"step {step}/{stage.steps} {note}")

    thread = threading.Thread(target=listen, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=30)


def _first_failure(err: TrainingFailedError) -> str:
    """The first worker's own error, in a line."""
    failures = getattr(err, "worker_failures", {})
    first = next(iter(failures.values()), err)
    cause = getattr(first, "cause", None) or first
    return f"training failed: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
