"""A training's state as metrics of Ray's, for Prometheus: what is now, where MLflow has what was.

Ray exports them on every node's metrics port; they go when the worker does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.util.metrics import Gauge

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "ddpm_train_"
SHOWN = {
    "images_per_s": ("images_per_second", "pictures trained on per second, by all workers"),
    "data_wait": ("data_wait_ratio", "share of its time that the first worker waited for data"),
    "checkpoint_wait": ("checkpoint_wait_ratio", "share of its time that the first worker waited for checkpoints"),
    "loss": ("loss", "mean loss since the last point"),
}
"""metrics of a point, and what they are called here"""


class Gauges:
    """Of one training, named by its key. Only the first worker sets them: what nobody set is not exported."""

    def __init__(self, training: str) -> None:
        self._tags = {"training": training}
        self._shown = {name: self._gauge(*shown) for name, shown in SHOWN.items()}
        self._step = self._gauge("step", "optimiser steps done")
        self._saved = self._gauge("checkpoint_timestamp_seconds", "when the newest checkpoint was whole, since 1970")
        self._failures = self._gauge("failures", "attempts of this training that ended before it did")

    def begin(self, attempt: int, saved: float) -> None:
        """An attempt begins, the first one with 1, from a checkpoint that was whole at `saved`, in seconds since 1970.

        Were it as new as the attempt, the checkpoint of a training that fails again and again would never be old.
        """
        self._failures.set(attempt - 1)
        self._saved.set(saved)

    def point(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a point, the same as MLflow gets."""
        self._step.set(step)
        for name, gauge in self._shown.items():
            gauge.set(metrics[name])

    def saved(self) -> None:
        """A checkpoint is whole."""
        self._saved.set(time.time())

    def _gauge(self, name: str, description: str) -> Gauge:
        gauge = Gauge(f"{PREFIX}{name}", description, tag_keys=tuple(self._tags))
        gauge.set_default_tags(self._tags)
        return gauge
