"""`ddpm train`: Ray Train workers stream a shard set and train; the model goes into the registry."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue

from diffusion.checkpoint import Checkpoint, Model, load_weights, save_model
from diffusion.data.order import EpochOrder
from diffusion.process import Diffusion
from diffusion.sampling import SamplerConfig
from diffusion.training import TrainConfig, resolve_precision
from diffusion.unet import UNet, UNetConfig

from .checkpoints import newest_checkpoint
from .cluster import connected
from .config import to_plain
from .progress import Bar, say
from .storage import JobFailed, check_storage, locked
from .tracking import CANDIDATE, ModelVersion, Tracker, log_model, model_version, set_alias
from .train_worker import TrainJob, train_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusion.data.shard_set import ShardSet
    from diffusion.files import Folder

    from .config import Config
    from .storage import Environment

FORMAT_VERSION = 1
VERSION_TAG = "ddpm.model_version"
REPORTS_KEPT = 1000


def run_key(config: Config, shards: ShardSet) -> str:
    """The identity of a training run: a hash of all that affects its result, and nothing else (16 hex characters)."""
    stage = {f.name: getattr(config.train, f.name) for f in fields(TrainConfig)}
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    stage["precision"] = resolve_precision(config.train.precision, device)
    sampler = {f.name: getattr(config.sample, f.name) for f in fields(SamplerConfig)}
    parts = [FORMAT_VERSION, shards.digest, stage, to_plain(config.model), to_plain(config.diffusion), sampler]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def finished(config: Config, environment: Environment, shards: ShardSet) -> ModelVersion | None:
    """The model that this training run has already put into the registry, if it has."""
    tracker = Tracker(environment)
    if tracker.is_empty:
        return None
    found = tracker.finished(config.name, "train", run_key(config, shards))
    return None if found is None else model_version(tracker, f"{config.name}/{found.tags[VERSION_TAG]}")


def run(config: Config, environment: Environment, shards: ShardSet) -> ModelVersion:
    """Train, or go on training, and register the model as `candidate`.

    Raises ValueError for settings that the data or the cluster cannot serve, JobFailed if the training fails.
    """
    check_storage(environment)
    unet = config.unet(shards.image_size, shards.channels, len(shards.classes))
    EpochOrder([tar.num_samples for tar in shards.split("train")], config.train, epoch=0)  # raises for too few samples
    run_id_key = run_key(config, shards)
    with locked(environment, f"train-{run_id_key}"):
        if (model := finished(config, environment, shards)) is not None:
            say(f"train: reused {model.uri}")
            return model
        tracker, folder = Tracker(environment), environment.training(run_id_key)
        folder.write_json("config.json", to_plain(config))
        run_id = tracker.start(config.name, "train", run_id_key, _tags(config, shards), _flat(to_plain(config)))
        tracker.log_dataset(run_id, config.name, shards.digest, shards.folder.uri)
        with tracker.ending(run_id):
            job = _Job(config, environment, shards, unet, folder)
            checkpoint = newest_checkpoint(folder)
            if checkpoint is None or checkpoint.step < config.train.steps:
                checkpoint = _train(job, tracker, run_id, done=0 if checkpoint is None else checkpoint.step)
            model = _register(job, checkpoint, tracker, run_id)
    return model


@dataclass(frozen=True)
class _Job:
    config: Config
    environment: Environment
    shards: ShardSet
    unet: UNetConfig
    folder: Folder


def _train(job: _Job, tracker: Tracker, run_id: str, done: int) -> Checkpoint:
    """Have Ray Train do the steps that are missing; the last checkpoint."""
    stage = job.config.train
    if done:
        say(f"train: going on from the checkpoint at step {done} of {stage.steps}")
    resources = {"CPU": stage.cpus_per_worker, **({"GPU": 1} if stage.use_gpu else {})}
    with connected(job.environment, stage):
        _check_room(resources, stage.num_workers)
        reports = Queue(REPORTS_KEPT, actor_options={"num_cpus": 0})
        spec = TrainJob(stage, job.unet, job.config.diffusion, job.shards.folder.uri, job.folder.uri, reports)
        trainer = TorchTrainer(
            partial(train_worker, spec),
            scaling_config=ScalingConfig(
                num_workers=stage.num_workers, use_gpu=stage.use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=job.folder.path.rsplit("/", 1)[-1],
                storage_path=f"{job.environment.folder.uri}/train/ray",
                failure_config=FailureConfig(max_failures=stage.max_failures),
                worker_runtime_env={"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},
            ),
        )
        with _listening(reports, job.config, tracker, run_id, done):
            try:
                trainer.fit()
            except TrainingFailedError as err:
                raise JobFailed(_last_word(err)) from err
    checkpoint = newest_checkpoint(job.folder)
    if checkpoint is None or checkpoint.step < stage.steps:
        raise JobFailed(f"training ended without its last checkpoint in {job.folder.uri}; run again to go on")
    return checkpoint


def _check_room(resources: dict[str, float], num_workers: int) -> None:
    """Ray would wait for ever for what the cluster does not have."""
    have = ray.cluster_resources()
    for name, each in resources.items():
        if each * num_workers > have.get(name, 0):
            raise ValueError(
                f"num_workers={num_workers} with {each:g} {name} each take {each * num_workers:g}, but the cluster has "
                f"{have.get(name, 0):g}; give fewer --num-workers, or a cluster with more"
            )


@contextmanager
def _listening(reports: Queue, config: Config, tracker: Tracker, run_id: str, done: int) -> Iterator[None]:
    """Draw the progress and log the metrics that the workers report, in a thread, until the block ends."""
    batch = config.train.global_batch
    over = threading.Event()

    def listen() -> None:
        note = ""
        with Bar("train", config.train.steps * batch, "img", done=done * batch) as bar:
            while True:
                try:
                    step, metrics = reports.get(timeout=0.5)
                except Empty:
                    if over.is_set():
                        return
                    continue
                if metrics is not None:
                    tracker.log_metrics(run_id, metrics, step)
                    note = f"loss {metrics['loss']:.4f}"
                bar.update(step * batch, f"step {step}/{config.train.steps} {note}")

    thread = threading.Thread(target=listen, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=30)


def _register(job: _Job, checkpoint: Checkpoint, tracker: Tracker, run_id: str) -> ModelVersion:
    """The first average of the weights as a model in the registry, with the alias `candidate`."""
    config, shards = job.config, job.shards
    unet = UNet(job.unet)
    load_weights(unet, checkpoint.emas[0])
    sampler = {f.name: getattr(config.sample, f.name) for f in fields(SamplerConfig)}
    model = Model(unet, Diffusion(config.diffusion), shards.classes, config.model.chunk, sampler)
    files: dict[str, bytes] = {}
    save_model(files.__setitem__, model)
    tags = {
        "ddpm.dataset_digest": shards.digest,
        "ddpm.dataset_uri": shards.folder.uri,
        "ddpm.weights_sha256": hashlib.sha256(files["model.safetensors"]).hexdigest(),
    }
    version = log_model(tracker, run_id, config.name, files, sampler, tags)
    set_alias(tracker, version, CANDIDATE, {})
    tracker.tag(run_id, {VERSION_TAG: version.version})
    return version


def _last_word(err: TrainingFailedError) -> str:
    """The first worker's own error, in a line."""
    failures = getattr(err, "worker_failures", {})
    first = next(iter(failures.values()), err)
    cause = getattr(first, "cause", None) or first
    return f"training failed: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"


def _tags(config: Config, shards: ShardSet) -> dict[str, str]:
    """What is worth knowing of a run and not part of its identity."""
    repository = Path(__file__).parent.parent
    git = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "ddpm.dataset_digest": shards.digest,
        "ddpm.num_workers": str(config.train.num_workers),
        "mlflow.source.git.commit": git.stdout.strip() or "unknown",
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} as {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
