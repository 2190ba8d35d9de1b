"""`ddpm evaluate`: the pictures of a sample run, or any shard set, measured beside the data, in an MLflow run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.data.shard_set import DATASET, ShardSet, open_shard_set
from diffusion.files import Folder

from .cluster.connection import connected
from .config_file import to_plain
from .drawing import model_files
from .logged_samples import bring_back
from .metrics.bits import held_out_bits
from .metrics.feature_nets import check_nets, feature_nets
from .metrics.measure import NEIGHBOURS, Subject, check_alike, measure
from .progress import say
from .storage import FOR_EVER, check_storage, locked
from .tracking import (
    DIGEST_TAG,
    FEATURES_OF_TAG,
    MODEL_TAG,
    SAMPLE_TAG,
    URI_TAG,
    ModelVersion,
    TrackedRun,
    Tracker,
    model_version,
    pull_model,
)

if TYPE_CHECKING:
    from .config import EvaluateStage
    from .storage import Environment


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and beside which data."""

    subject: Subject
    data: ShardSet
    name: str
    """of the experiment"""
    tags: dict[str, str]
    """its lineage"""
    model: ModelVersion | None
    """which drew it, if one did"""
    run: TrackedRun | None
    """that drew it"""


def run(environment: Environment, what: str, data: str, split: str, stage: EvaluateStage) -> TrackedRun:
    """Measure `what`: a sample run by its id, NAME for the newest of that model, or the path or URI of a shard set.

    `data`: the shard set to compare with, path or URI; where it is empty, what the model was trained on. Metrics go
    into a run of their own and, if a sample run is measured beside its own model's data, onto that run and its
    model, too. Raises ValueError if there is no such thing, or the two cannot be compared.
    """
    check_storage(environment)
    tracker = Tracker(environment)
    asked = find(environment, tracker, what, data, split)
    check_alike(asked.subject, asked.data)
    if stage.bits_images and asked.model is None:
        raise ValueError(f"bits_images must be 0 for pictures that no model drew, got {stage.bits_images}")
    if not asked.data.num_samples(stage.reference):
        raise ValueError(f"reference must have pictures; {asked.data.folder.uri} has none in {stage.reference}")
    check_nets(environment, stage)
    key = evaluation_key(asked, stage)
    with locked(environment, f"evaluate-{key}", wait_s=FOR_EVER):
        if (done := tracker.finished(asked.name, "evaluate", key)) is not None:
            say(f"evaluate: reused run {done.run_id}")
            return done
        return _evaluate(environment, tracker, asked, stage, key)


def finished(environment: Environment, run_id: str, data: ShardSet, stage: EvaluateStage) -> TrackedRun | None:
    """The evaluation of this sample run beside this data, if it is done. Raises ValueError if the data has changed."""
    tracker = Tracker(environment)
    asked = find(environment, tracker, run_id, data.folder.uri, "train")
    if asked.data.digest != data.digest:
        raise ValueError(f"the shard set at {data.folder.uri} was added to meanwhile; run again to work with all of it")
    return tracker.finished(asked.name, "evaluate", evaluation_key(asked, stage))


def evaluation_key(asked: Asked, stage: EvaluateStage) -> str:
    """The identity of a measurement (16 hex characters)."""
    of = [asked.subject.shards.digest, asked.subject.split, asked.data.digest, sorted(stage.features)]
    parts = [*of, stage.inception_weights, stage.reference_images, stage.bits_images]
    if stage.bits_images and asked.model is not None:
        parts.append(asked.model.uri)
    if stage.reference != "train":
        parts.append(stage.reference)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _evaluate(environment: Environment, tracker: Tracker, asked: Asked, stage: EvaluateStage, key: str) -> TrackedRun:
    params = {**to_plain(stage), "pictures": asked.subject.shards.folder.uri, "split": asked.subject.split}
    tags = {**asked.tags, FEATURES_OF_TAG: asked.subject.key}
    run_id = tracker.start(asked.name, "evaluate", key, tags, params)
    with tracker.ending(run_id), connected(environment, stage):
        tracker.log_dataset(run_id, asked.name, asked.data.digest, asked.data.folder.uri, "reference")
        nets = feature_nets(environment, tracker, stage, asked.name, asked.data)
        measured = measure(environment, asked.subject, asked.data, nets, stage, stage, stage.reference)
        metrics = measured.metrics
        if asked.model is not None and stage.bits_images:
            files = model_files(asked.model.uri, pull_model(asked.model))
            metrics |= held_out_bits(files, asked.data, stage.bits_images, stage)
        own = asked.model is not None and asked.model.tags[DIGEST_TAG] == asked.data.digest
        own = own and stage.reference == "train"  # as its own run measured it: one name, one meaning
        tracker.log_metrics(run_id, metrics, model_id=asked.model.model_id if own and asked.model else "")
        if own and asked.run is not None:
            tracker.log_metrics(asked.run.run_id, metrics)
        with TemporaryDirectory() as temporary:
            (Path(temporary) / NEIGHBOURS).write_bytes(measured.neighbours)
            tracker.log_folder(run_id, Path(temporary))
    return tracker.run(run_id)


def find(environment: Environment, tracker: Tracker, what: str, data: str, split: str) -> Asked:
    """Find what is to be measured; samples that have gone from the storage come back to it from MLflow."""
    if (folder := Folder(what)).exists(DATASET):
        if not data:
            raise ValueError(f"data must be given, the shard set to compare {what} with")
        shards, reference = open_shard_set(folder), open_shard_set(Folder(data))
        if not shards.num_samples(split):
            raise ValueError(f"split must have pictures; {folder.uri} has none in {split}")
        subject = Subject(shards, split, shards.digest)
        return Asked(subject, reference, folder.name, {DIGEST_TAG: reference.digest}, None, None)
    if tracker.is_empty:
        raise ValueError(f"there are no samples of {what!r}: nothing has been tracked in {tracker.uri} yet")
    tracked = tracker.latest(what, "sample") or tracker.run(what)
    if MODEL_TAG not in tracked.tags:
        raise ValueError(f"run must be one of ddpm sample, got {tracked.run_id}")
    model = model_version(tracker, tracked.tags[MODEL_TAG])
    folder = environment.samples(tracked.key)
    if not folder.exists(DATASET):
        bring_back(tracker, tracked.run_id, folder)
    shards, reference = open_shard_set(folder), open_shard_set(Folder(data or model.tags[URI_TAG]))
    tags = {MODEL_TAG: model.uri, DIGEST_TAG: model.tags[DIGEST_TAG], SAMPLE_TAG: tracked.run_id}
    return Asked(Subject(shards, "train", tracked.key), reference, model.name, tags, model, tracked)
