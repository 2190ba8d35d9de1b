"""MLflow, and the only place that imports it: runs, the model registry, and what is pulled back out."""

from .artifacts import Artifacts
from .inventory import StoredRun, StoredVersion, delete_run, delete_version, stored_runs, stored_versions
from .lineage import Node, lineage_tags, tree_of
from .registry import (
    CANDIDATE,
    CHAMPION,
    ModelVersion,
    champion_of,
    describe,
    log_model,
    model_version,
    pull_model,
    pull_model_into,
    set_alias,
)
from .runs import (
    DIGEST_TAG,
    FEATURES_OF_TAG,
    GIT_TAG,
    MODEL_TAG,
    STAGE_TAG,
    TRAINING_TAG,
    URI_TAG,
    TrackedRun,
    Tracker,
)
from .server import check_server

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DIGEST_TAG",
    "FEATURES_OF_TAG",
    "GIT_TAG",
    "MODEL_TAG",
    "STAGE_TAG",
    "TRAINING_TAG",
    "URI_TAG",
    "Artifacts",
    "ModelVersion",
    "Node",
    "StoredRun",
    "StoredVersion",
    "TrackedRun",
    "Tracker",
    "champion_of",
    "check_server",
    "delete_run",
    "delete_version",
    "describe",
    "lineage_tags",
    "log_model",
    "model_version",
    "pull_model",
    "pull_model_into",
    "set_alias",
    "stored_runs",
    "stored_versions",
    "tree_of",
]
