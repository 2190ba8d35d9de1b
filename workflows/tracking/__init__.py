"""MLflow, and the only place that imports it: runs, the model registry, and what is pulled back out."""

from .artifacts import Artifacts
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
from .runs import DIGEST_TAG, GIT_TAG, MODEL_TAG, URI_TAG, TrackedRun, Tracker, check_server

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DIGEST_TAG",
    "GIT_TAG",
    "MODEL_TAG",
    "URI_TAG",
    "Artifacts",
    "ModelVersion",
    "Node",
    "TrackedRun",
    "Tracker",
    "champion_of",
    "check_server",
    "describe",
    "lineage_tags",
    "log_model",
    "model_version",
    "pull_model",
    "pull_model_into",
    "set_alias",
    "tree_of",
]
