"""MLflow, and the only place that imports it: runs, the model registry, and what is pulled back out."""

from .registry import ModelVersion, log_model, model_version, pull_model, set_alias
from .runs import TrackedRun, Tracker

__all__ = ["ModelVersion", "TrackedRun", "Tracker", "log_model", "model_version", "pull_model", "set_alias"]
