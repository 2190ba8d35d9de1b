"""`ddpm train`: Ray Train workers stream a shard set and train; the model goes into the registry."""

from __future__ import annotations

import hashlib
import json
import subprocess
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from diffusion.checkpoint import WEIGHTS, Checkpoint, Model, load_model, load_weights, save_model
from diffusion.data.order import EpochOrder
from diffusion.diffusers_format import export_diffusers
from diffusion.process import Diffusion
from diffusion.sampling import SamplerConfig
from diffusion.settings import narrowed
from diffusion.train_config import Precision, TrainConfig, resolve_precision
from diffusion.unet import UNet, UNetConfig

from .config_file import to_plain
from .pages.card import model_card
from .progress import say
from .storage import JobFailed, check_storage, locked
from .tracking import (
    CANDIDATE,
    DIGEST_TAG,
    GIT_TAG,
    START_TAG,
    URI_TAG,
    ModelVersion,
    Tracker,
    describe,
    log_model,
    model_version,
    pull_model,
    set_alias,
)
from .training.checkpoints import newest_checkpoint
from .training.spec import Report, TrainingSpec

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet
    from diffusion.files import Folder

    from .config import Config, TrainStage
    from .storage import Environment

FORMAT_VERSION = 1
START = "start.safetensors"
"""weights that a training begins with, in its folder"""
NUM_TAG = "ddpm.num_images"
"""of a version: how many pictures, held-out ones too, there were when it was trained"""
SHA256_TAG = "ddpm.weights_sha256"
VERSION_TAG = "ddpm.model_version"


def start_of(config: Config, tracker: Tracker) -> ModelVersion | None:
    """The model whose weights the training begins with, if it is to. Raises ValueError if there is no such model."""
    return model_version(tracker, config.train.init_from) if config.train.init_from else None


def start_weights(start: ModelVersion, config: Config, shards: ShardSet) -> bytes:
    """Its weights as a file. Raises ValueError if they are of another network, or one that predicts something else."""
    files = pull_model(start)
    model = load_model(files.__getitem__)
    if model.diffusion.config.prediction != config.diffusion.prediction:
        raise ValueError(
            f"init_from must be a model that predicts {config.diffusion.prediction}; "
            f"{start.uri} predicts {model.diffusion.config.prediction}"
        )
    try:
        shape = config.unet(shards.image_size, shards.channels, len(shards.classes))
        load_weights(UNet(shape), model.unet.state_dict())
    except ValueError as err:
        raise ValueError(f"init_from must be a model of this very network, got {start.uri}: {err}") from None
    return files[WEIGHTS]


def run_key(config: Config, shards: ShardSet, start: ModelVersion | None = None) -> str:
    """The identity of a training run: a hash of all that affects its result, and nothing else (16 hex characters).

    `start`: the model whose weights it begins with.
    """
    stage = narrowed(TrainConfig, config.train)
    stage["precision"] = _precision(config.train)
    parts = [FORMAT_VERSION, shards.digest, stage, to_plain(config.model), to_plain(config.diffusion)]
    if start is not None:
        parts.append(start.tags[SHA256_TAG])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _precision(stage: TrainStage) -> Precision:
    return resolve_precision(stage.precision, torch.device("cuda" if stage.use_gpu else "cpu"))


def finished(name: str, environment: Environment, key: str) -> ModelVersion | None:
    """The version of model `name` that the training run of this identity has already put there, if it has."""
    tracker = Tracker(environment)
    if tracker.is_empty or (found := tracker.finished(name, "train", key)) is None:
        return None
    return model_version(tracker, f"{name}/{found.tags[VERSION_TAG]}")


def run(config: Config, environment: Environment, shards: ShardSet, fresh: bool = False) -> ModelVersion:
    """Train, or go on training, and register the model as `candidate`; `fresh`: from the first step, whatever is there.

    Raises ValueError for settings that the data or the cluster cannot serve, JobFailed if the training fails.
    """
    check_storage(environment)
    unet = config.unet(shards.image_size, shards.channels, len(shards.classes))
    EpochOrder([tar.num_samples for tar in shards.split("train")], config.train, epoch=0)  # raises for too few samples
    tracker = Tracker(environment)
    start = start_of(config, tracker)
    key = run_key(config, shards, start)
    with locked(environment, f"train-{key}"):
        if not fresh and (model := finished(config.name, environment, key)) is not None:
            say(f"train: reused {model.uri}")
            return model
        folder = environment.training(key)
        begun = None if start is None else start_weights(start, config, shards)
        if fresh:
            environment.folder.delete(f"train/{key}")
        if begun is not None:
            folder.write(START, begun)
        folder.write_json("config.json", to_plain(config))
        run_id = tracker.start(config.name, "train", key, _tags(config, shards, start), _flat(to_plain(config)))
        tracker.log_dataset(run_id, config.name, shards.digest, shards.folder.uri)
        with tracker.ending(run_id):
            stage = replace(config.train, precision=_precision(config.train))  # the workers' CPUs may differ from ours
            spec = TrainingSpec(
                stage, unet, config.diffusion, shards.folder.uri, folder.uri, run_id, START if begun else ""
            )
            checkpoint = _last_checkpoint(spec, environment, folder, tracker)
            model = _register(config, shards, unet, checkpoint, tracker, run_id)
    return model


def _last_checkpoint(spec: TrainingSpec, environment: Environment, folder: Folder, tracker: Tracker) -> Checkpoint:
    """The checkpoint of the last step: the one that is there, or after the steps that are missing."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None or checkpoint.step < spec.stage.steps:
        from .training.fit_on_ray import fit_on_ray  # Ray Train takes seconds to import: not for a run that is done

        log_points, log_preview = (
            partial(_log_points, tracker, spec.launch),
            partial(_log_preview, tracker, spec.launch),
        )
        fit_on_ray(spec, environment, 0 if checkpoint is None else checkpoint.step, log_points, log_preview)
        checkpoint = newest_checkpoint(folder)
    if checkpoint is None or checkpoint.step < spec.stage.steps:
        raise JobFailed(f"training ended without its last checkpoint in {folder.uri}; run again to go on")
    return checkpoint


def _log_points(tracker: Tracker, run_id: str, reports: list[Report]) -> None:
    tracker.log_points(run_id, [(report.metrics or {}, report.step, report.time) for report in reports])


def _log_preview(tracker: Tracker, run_id: str, step: int, files: dict[str, bytes]) -> None:
    with TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / f"step-{step:08d}-{name}").write_bytes(data)
        tracker.log_folder(run_id, Path(folder), "previews")


def _register(
    config: Config, shards: ShardSet, shape: UNetConfig, checkpoint: Checkpoint, tracker: Tracker, run_id: str
) -> ModelVersion:
    """The first average of the weights as a model in the registry."""
    unet = UNet(shape)
    load_weights(unet, checkpoint.emas[0])
    sampler = narrowed(SamplerConfig, config.sample)
    if not shards.classes:
        sampler["guidance"] = 1.0  # there is nothing to guide to
    model = Model(unet, Diffusion(config.diffusion), shards.classes, config.model.chunk, sampler)
    tags = {DIGEST_TAG: shards.digest, URI_TAG: shards.folder.uri, NUM_TAG: str(sum(shards.counts.values()))}
    version = register(tracker, run_id, config.name, model, tags)
    tracker.tag(run_id, {VERSION_TAG: version.version})
    return version


def register(tracker: Tracker, run_id: str, name: str, model: Model, tags: dict[str, str]) -> ModelVersion:
    """A model as a new version of `name` in the registry, made by this run, with the alias `candidate` and a card.

    Among its files is a folder `diffusers`, unless diffusers cannot have such a network.
    """
    files: dict[str, bytes] = {}
    save_model(files.__setitem__, model)
    tags = {**tags, SHA256_TAG: hashlib.sha256(files[WEIGHTS]).hexdigest()}
    theirs: dict[str, bytes] = {}
    with suppress(ValueError):
        export_diffusers(theirs.__setitem__, model)
    files |= {f"diffusers/{file}": data for file, data in theirs.items()}
    rows = pd.DataFrame({"seed": [0, 1], "label": [0, 1]} if model.classes else {"seed": [0, 1]})
    version = log_model(tracker, run_id, name, files, model.sampler, tags, rows)
    describe(tracker, version, model_card(version, model))
    set_alias(tracker, version, CANDIDATE, {})
    return version


def _tags(config: Config, shards: ShardSet, start: ModelVersion | None) -> dict[str, str]:
    """What is worth knowing of a run and not part of its identity."""
    repository = Path(__file__).parent.parent
    git = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    began = {} if start is None else {START_TAG: start.uri, "ddpm.start_weights_sha256": start.tags[SHA256_TAG]}
    return {
        **began,
        DIGEST_TAG: shards.digest,
        "ddpm.num_workers": str(config.train.num_workers),
        GIT_TAG: git.stdout.strip() or "unknown",
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} as {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
