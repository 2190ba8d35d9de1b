"""Training on Ray Train: the worker group, its room in the cluster, and what it reports."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from diffusion.files import Folder

from ..cluster.connection import connected, resources
from ..progress import Bar, say
from ..storage import JobFailed
from .checkpoints import reason_to_stop
from .points import Points
from .preview import Previews
from .process_group import ProcessGroup
from .worker import train_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ray.actor import ActorHandle

    from ..config import TrainStage
    from ..storage import Environment
    from .spec import Report, TrainingSpec

REPORTS_KEPT = 1000
ROOM_TIMEOUT_S = 25
"""for room to start the workers in; Ray asks twice, and then it is reported"""
SILENCE_S = 50
"""after which the driver looks whether there is room at all: an elastic group would wait for ever"""
PEER_TIMEOUT_S = 600
"""for a worker that still lives to come to what all do together: NCCL's own default; gloo would wait half an hour"""
LAST_PREVIEW_S = 120


def fit_on_ray(
    spec: TrainingSpec,
    environment: Environment,
    done: int,
    log_points: Callable[[list[Report]], None],
    log_preview: Callable[[int, dict[str, bytes]], None],
) -> None:
    """Train from step `done` to the last, leaving the checkpoints in the run's folder.

    `log_points` is given reports with metrics, `log_preview` a step's pictures by file name. Raises ValueError if the
    cluster has no room for the workers, JobFailed if the training stops, or the workers fail more than `max_failures`
    times.
    """
    stage = spec.stage
    if done:
        say(f"train: going on from the checkpoint at step {done} of {stage.steps}")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ROOM_TIMEOUT_S))
    with connected(environment, stage):
        check_room(resources(), stage)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # on the driver's node, as Ray's own controller of the training is: any other may be lost, and with it the queue
        reports = Queue(REPORTS_KEPT, actor_options={"num_cpus": 0, "scheduling_strategy": here})
        trainer = _trainer(spec, environment, reports)
        previews = Previews(spec, done, log_preview)
        with Points(log_points) as points, Listener(reports, trainer, stage, done, points, previews) as listener:
            try:
                trainer.fit()
            except TrainingFailedError as err:
                reason = reason_to_stop(Folder(spec.run_uri), spec.launch) or missing(stage) or _first_failure(err)
                raise JobFailed(reason) from err
            except RayActorError:
                if listener.missing:
                    raise JobFailed(listener.missing) from None
                raise
            if why := reason_to_stop(Folder(spec.run_uri), spec.launch):
                raise JobFailed(f"training stopped: {why}")


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's own, but that it leaves signals to us: at Ctrl-C, Ray's handler would wait and leave by SystemExit."""

    _controller: ActorHandle | None = None

    def _register_sigint_handler(self, controller: ActorHandle) -> None:
        self._controller = controller

    def give_up(self) -> None:
        """End the training where it is: `fit` raises RayActorError."""
        if self._controller is not None:
            ray.kill(self._controller)


def _trainer(spec: TrainingSpec, environment: Environment, reports: Queue) -> Trainer:
    run_config = RunConfig(
        name=spec.run_uri.rsplit("/", 1)[-1],
        storage_path=(environment.folder / "train/ray").uri,
        failure_config=FailureConfig(max_failures=spec.stage.max_failures, controller_failure_limit=1),
        worker_runtime_env={"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},
    )
    return Trainer(
        partial(train_worker, spec, reports),
        torch_config=ProcessGroup(timeout_s=PEER_TIMEOUT_S),
        scaling_config=_scaling(spec.stage),
        run_config=run_config,
    )


def _resources(stage: TrainStage) -> dict[str, float]:
    return {"CPU": stage.cpus_per_worker, **({"GPU": 1} if stage.use_gpu else {})}


def _scaling(stage: TrainStage) -> ScalingConfig:
    is_elastic = 0 < stage.min_workers < stage.num_workers
    num_workers = (stage.min_workers, stage.num_workers) if is_elastic else stage.num_workers
    return ScalingConfig(num_workers=num_workers, use_gpu=stage.use_gpu, resources_per_worker=_resources(stage))


def check_room(have: dict[str, float], stage: TrainStage) -> None:
    """Raises ValueError for what the cluster does not have; Ray would wait for it for ever."""
    num_workers = stage.min_workers or stage.num_workers
    for name, amount in _resources(stage).items():
        if amount * num_workers > have.get(name, 0):
            raise ValueError(
                f"num_workers={num_workers} with {amount:g} {name} each take {amount * num_workers:g}, but the cluster "
                f"has {have.get(name, 0):g}; give fewer --num-workers, or a cluster with more"
            )


def missing(stage: TrainStage) -> str:
    """What the cluster does not have, or has no longer; "" if nothing."""
    try:
        check_room(resources(), stage)
    except ValueError as err:
        return str(err)
    return ""


class Listener:
    """Draws the progress, and hands on what the workers report, in a thread, until its block ends."""

    def __init__(
        self, reports: Queue, trainer: Trainer, stage: TrainStage, done: int, points: Points, previews: Previews
    ) -> None:
        self.reports, self.trainer, self.stage, self.done = reports, trainer, stage, done
        self.points, self.previews = points, previews
        self.missing = ""
        """what the cluster has not, where the training cannot go on: it is given up"""
        self._over = threading.Event()
        self._interrupted = False
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._listen, name="reports", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._interrupted = kind is KeyboardInterrupt
        self._thread.join(timeout=30)
        if kind is None:
            self.previews.collect(LAST_PREVIEW_S)

    def _listen(self) -> None:
        batch, note = self.stage.global_batch, ""
        with Bar("train", self.stage.steps * batch, "img", done=self.done * batch) as bar:
            while not self._interrupted:  # else until all is heard: it trains on
                self.previews.collect()
                try:
                    report: Report = self.reports.get(timeout=1)
                except Empty:
                    if self._over.is_set():
                        return
                    self._look_for_room()
                    continue
                except RayError:
                    return  # the cluster has gone, of which the main thread hears too
                self._heard = time.monotonic()
                self.previews.look(report)
                if report.metrics is not None:
                    self.points.add(report)
                    note = f"loss {report.metrics['loss']:.4f}" if "loss" in report.metrics else note
                bar.update(report.step * batch, f"step {report.step}/{self.stage.steps} {note}")

    def _look_for_room(self) -> None:
        if time.monotonic() - self._heard < SILENCE_S:
            return
        self._heard = time.monotonic()
        self.missing = missing(self.stage)
        if self.missing:
            self.trainer.give_up()


def _first_failure(err: TrainingFailedError) -> str:
    """The first worker's own error, in a line."""
    failures = getattr(err, "worker_failures", {})
    first = next(iter(failures.values()), err)
    cause = getattr(first, "cause", None) or first
    return f"training failed: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
