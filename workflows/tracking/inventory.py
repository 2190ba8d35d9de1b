"""All of our runs and versions that a tracking server has, and how they are taken away."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from .registry import ModelVersion, version_of, with_aliases
from .runs import DIGEST_TAG, KEY_TAG, STAGE_TAG, TrackedRun, tracked

if TYPE_CHECKING:
    from .runs import Tracker


@dataclass(frozen=True)
class StoredRun:
    """One of our runs, deleted ones included: MLflow marks them, and keeps them until its own `mlflow gc`."""

    tracked: TrackedRun
    experiment: str
    data: tuple[tuple[str, str], ...]
    """digest and URI of what it worked with"""
    changed: float
    """when it ended, or else began, in seconds since 1970"""
    artifacts: str
    """URI of their folder"""
    is_deleted: bool


@dataclass(frozen=True)
class StoredVersion:
    """One of our versions in the registry."""

    model: ModelVersion
    changed: float
    artifacts: str
    """URI of what was logged as the model; "" where that is not known, or another version's, too"""


def stored_runs(tracker: Tracker) -> list[StoredRun]:
    """Our runs in all experiments, oldest first; others' on the same server are none of our business."""
    experiments = {
        experiment.experiment_id: experiment.name
        for experiment in tracker.pages(partial(tracker.client.search_experiments, ViewType.ALL))
    }
    ours = f"tags.`{STAGE_TAG}` LIKE '%' AND tags.`{KEY_TAG}` LIKE '%'"
    search = partial(
        tracker.client.search_runs, list(experiments), ours, ViewType.ALL, order_by=["attributes.start_time ASC"]
    )
    return [_stored(run, experiments[run.info.experiment_id]) for run in tracker.pages(search)]


def _stored(run: Any, experiment: str) -> StoredRun:
    inputs = [used.dataset for used in (run.inputs.dataset_inputs if run.inputs else [])]
    data = tuple((each.digest, json.loads(each.source).get("uri", "")) for each in inputs)
    changed = (run.info.end_time or run.info.start_time) / 1000
    deleted = run.info.lifecycle_stage == "deleted"
    return StoredRun(tracked(run), experiment, data, changed, run.info.artifact_uri, deleted)


def stored_versions(tracker: Tracker) -> list[StoredVersion]:
    """Our versions, with their aliases."""
    found = [made for made in tracker.pages(tracker.client.search_model_versions) if DIGEST_TAG in made.tags]
    models = with_aliases(tracker, [version_of(made) for made in found])
    shared = [model.model_id for model in models]
    return [
        StoredVersion(
            model,
            made.creation_timestamp / 1000,
            _location(tracker, model) if shared.count(model.model_id) == 1 else "",
        )
        for model, made in zip(models, found, strict=True)
    ]


def _location(tracker: Tracker, model: ModelVersion) -> str:
    with suppress(MlflowException):
        return str(tracker.client.get_logged_model(model.model_id).artifact_location)
    return ""


def delete_run(tracker: Tracker, run_id: str) -> None:
    """Mark a run as deleted; its row and its files stay."""
    tracker.client.delete_run(run_id)


def delete_version(tracker: Tracker, uri: str, model_id: str = "") -> None:
    """Take models:/NAME/VERSION out of the registry, and mark what was logged as it (`model_id`) as deleted."""
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    tracker.client.delete_model_version(name, version)
    with suppress(MlflowException):
        if model_id:
            tracker.client.delete_logged_model(model_id)
