"""MLflow, and the only place that imports it: runs, the model registry, and what is pulled back out."""

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
from .runs import TrackedRun, Tracker, check_server

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "ModelVersion",
    "TrackedRun",
    "Tracker",
    "champion_of",
    "check_server",
    "describe",
    "log_model",
    "model_version",
    "pull_model",
    "set_alias",
]
