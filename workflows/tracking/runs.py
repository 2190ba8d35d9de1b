"""Runs in MLflow, always by run id: MLflow's own "active run" is a thread's, and ours cross processes."""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from ..storage import locked
from .artifacts import Artifacts
from .refusals import check_absent, soon_given_up
from .server import check_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Environment

KEY_TAG, STAGE_TAG = "ddpm.key", "ddpm.stage"
DIGEST_TAG, URI_TAG, MODEL_TAG = "ddpm.dataset_digest", "ddpm.dataset_uri", "ddpm.model"
TRAINING_TAG, SAMPLE_TAG = "ddpm.training_run", "ddpm.sample_run"
START_TAG = "ddpm.start_model"
"""the model whose weights a training began with"""
OUTCOME_TAG = "ddpm.outcome"
"""of a retraining, or of its candidate: promoted, refused or skipped"""
REASONS_TAG = "ddpm.reasons"
"""for it, a list in JSON"""
FEATURES_OF_TAG = "ddpm.features_of"
"""the key that features of what a run measured are kept under"""
GIT_TAG = "mlflow.source.git.commit"
MAX_PARAM_LENGTH = 500


@dataclass(frozen=True)
class TrackedRun:
    """A run as it was when it was looked up."""

    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]
    status: str
    """RUNNING, FINISHED, FAILED or KILLED"""
    seconds: float | None = None
    """that it took; None: it has not ended"""

    @property
    def key(self) -> str:
        """The identity of what it did."""
        return self.tags[KEY_TAG]


class Tracker:
    """A connection to a tracking server, or to the SQLite file that stands in for one.

    Raises ValueError if the server does not answer within seconds (MLflow itself would retry for minutes).
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.uri = environment.mlflow_uri
        self.artifact_root = environment.artifact_root
        self.database = Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:") else None
        check_server(environment)
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client; making it makes the database, which takes seconds, and which two must not do at once."""
        if self.database is None:
            return MlflowClient(self.uri, self.uri)
        with locked(self.environment, "mlflow"):
            return MlflowClient(self.uri, self.uri)

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be tracked yet, known without making the database (which takes seconds)."""
        return self.database is not None and not self.database.exists()

    def experiment(self, name: str) -> str:
        """The id of an experiment, made if it is not there, its artifacts under the storage unless a server says."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            root = None if self.artifact_root is None else f"{self.artifact_root}/{name}"
            return str(self.client.create_experiment(name, artifact_location=root))
        except MlflowException:  # somebody made it in between
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def start(self, experiment: str, stage: str, key: str, tags: dict[str, str], params: dict[str, Any]) -> str:
        """Begin a run for this stage and key; those that died and still say RUNNING are marked KILLED."""
        experiment_id = self.experiment(experiment)
        for stale in self._search(experiment_id, _where(stage, key, "RUNNING")):
            self.client.set_terminated(stale.info.run_id, status="KILLED")
        run = self.client.create_run(
            experiment_id, run_name=f"{stage}-{key[:8]}", tags={STAGE_TAG: stage, KEY_TAG: key, **tags}
        )
        values = [Param(name, _typed(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
        self.client.log_batch(run.info.run_id, params=values)
        return str(run.info.run_id)

    def finished(self, experiment: str, stage: str, key: str) -> TrackedRun | None:
        """The newest run of this stage and key that came to its end."""
        found = self.client.get_experiment_by_name(experiment)
        runs = [] if found is None else self._search(found.experiment_id, _where(stage, key, "FINISHED"))
        return tracked(runs[0]) if runs else None

    def latest(self, experiment: str, stage: str) -> TrackedRun | None:
        """The newest run of this stage that came to its end, whatever its key."""
        found = self.client.get_experiment_by_name(experiment)
        where = f"tags.`{STAGE_TAG}` = '{stage}' AND attributes.status = 'FINISHED'"
        runs = [] if found is None else self._search(found.experiment_id, where)
        return tracked(runs[0]) if runs else None

    def newest(self, experiment: str, stage: str) -> TrackedRun | None:
        """The newest run of this stage, however it ended, or has not."""
        if self.is_empty:
            return None
        found = self.client.get_experiment_by_name(experiment)
        runs = [] if found is None else self._search(found.experiment_id, f"tags.`{STAGE_TAG}` = '{stage}'")
        return tracked(runs[0]) if runs else None

    def tagged(self, tag: str, value: str) -> list[TrackedRun]:
        """The runs of all experiments with this tag, oldest first."""
        experiments = [experiment.experiment_id for experiment in self.pages(self.client.search_experiments)]
        search = partial(self.client.search_runs, experiments, f"tags.`{tag}` = '{value}'", order_by=["start_time ASC"])
        return [tracked(run) for run in self.pages(search)]

    def has_run(self, run_id: str) -> bool:
        """Whether there is a run of this id. Raises JobFailed if MLflow does not answer."""
        try:
            self.run(run_id)
        except ValueError:
            return False
        return True

    def run(self, run_id: str) -> TrackedRun:
        """A run by id. Raises ValueError if there is none, JobFailed if MLflow does not answer."""
        try:
            return tracked(self.client.get_run(run_id))
        except MlflowException as err:
            check_absent(err)
            raise ValueError(f"run must be the id of a run in {self.uri}, got {run_id!r}") from None

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """All values of a metric with their steps, in order; of a step that was done again, the last."""
        values = sorted(self.client.get_metric_history(run_id, name), key=lambda value: value.timestamp)
        return sorted({value.step: value.value for value in values}.items())

    def log_metrics(self, run_id: str, values: dict[str, float], step: int = 0, model_id: str = "") -> None:
        """One call for all of a step's values, as of now; with a `model_id`, they are that model's, too."""
        self.log_points(run_id, [(values, step, time.time())], model_id)

    def log_points(self, run_id: str, points: list[tuple[dict[str, float], int, float]], model_id: str = "") -> None:
        """Values of several steps in one call: names and values, the step, and when, in seconds since 1970.

        At most 1,000 values, MLflow's own limit.
        """
        metrics = [
            Metric(name, value, int(seconds * 1000), step, model_id=model_id or None)
            for values, step, seconds in points
            for name, value in values.items()
        ]
        self.client.log_batch(run_id, metrics=metrics)

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_dataset(self, run_id: str, name: str, digest: str, uri: str, context: str = "training") -> None:
        """Say which data the run worked with, and for what: an edge of the lineage."""
        dataset = DatasetEntity(name, digest, "local", json.dumps({"uri": uri}))
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_folder(self, run_id: str, folder: Path, name: str = "") -> None:
        """All the files under a local folder, as artifacts under `name`, or at the top."""
        self.client.log_artifacts(run_id, str(folder), name or None)

    def log_file(self, run_id: str, file: Path) -> None:
        """A local file, as an artifact at the top."""
        self.client.log_artifact(run_id, str(file))

    def names(self, stage: str) -> list[str]:
        """The experiments with a run of this stage that came to its end; 20 are looked through."""
        experiments = self.client.search_experiments(max_results=20)
        return [each.name for each in experiments if self.latest(each.name, stage) is not None]

    def artifacts(self, run_id: str) -> Artifacts:
        """What a run has logged, to be had file by file."""
        return Artifacts(self.client.get_run(run_id).info.artifact_uri, f"run {run_id}")

    def artifact_names(self, run_id: str) -> set[str]:
        """The names of what lies at the top of a run's artifacts."""
        return {file.path for file in self.client.list_artifacts(run_id)}

    def download(self, run_id: str, name: str, destination: Path) -> Path:
        """The artifacts under `name`, into a folder. Raises ValueError if the run has none."""
        try:
            return Path(self.client.download_artifacts(run_id, name, str(destination)))
        except (MlflowException, OSError) as err:
            raise ValueError(f"run {run_id} has no artifact {name!r}: {err}") from None

    @contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """Around the work of a run: FINISHED if it comes through, KILLED if it is interrupted, else FAILED.

        What went wrong is raised even if MLflow cannot be told of it: the next run of its kind marks this one.
        """
        try:
            yield
        except BaseException as err:
            status = "FAILED" if isinstance(err, Exception) else "KILLED"
            with soon_given_up(), suppress(MlflowException):
                self.client.set_terminated(run_id, status=status)
            raise
        self.client.set_terminated(run_id)

    def pages(self, search: Callable[..., Any]) -> Iterator[Any]:
        """All that a search finds; MLflow gives it a page at a time."""
        token = None
        while True:
            page = search(page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _search(self, experiment_id: str, where: str) -> list[Any]:
        return list(self.client.search_runs([experiment_id], where, ViewType.ACTIVE_ONLY, order_by=["start_time DESC"]))


def _where(stage: str, key: str, status: str) -> str:
    return f"tags.`{STAGE_TAG}` = '{stage}' AND tags.`{KEY_TAG}` = '{key}' AND attributes.status = '{status}'"


def tracked(run: Any) -> TrackedRun:
    """MLflow's run as ours."""
    data, info = run.data, run.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    return TrackedRun(info.run_id, dict(data.tags), dict(data.metrics), dict(data.params), info.status, seconds)


def _typed(value: object) -> str:
    """A setting as it is typed after its flag."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
