"""MLflow, and the only place that imports it: runs, the model registry, and what is pulled back out."""

from .lineage import Node, tree_of
from .registry import (
    CANDIDATE,
    CHAMPION,
    ModelVersion,
    champion_of,
    describe,
    log_model,
    model_version,
    pull_model,
    set_alias,
)
from .runs import DIGEST_TAG, GIT_TAG, MODEL_TAG, STAGE_TAG, TRAINING_TAG, URI_TAG, TrackedRun, Tracker, check_server

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DIGEST_TAG",
    "GIT_TAG",
    "MODEL_TAG",
    "STAGE_TAG",
    "TRAINING_TAG",
    "URI_TAG",
    "ModelVersion",
    "Node",
    "TrackedRun",
    "Tracker",
    "champion_of",
    "check_server",
    "describe",
    "log_model",
    "model_version",
    "pull_model",
    "set_alias",
    "tree_of",
]
