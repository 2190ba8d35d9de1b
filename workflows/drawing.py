"""What the jobs that draw have in common: the model on its way to the tasks, and how a request is cut into parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.checkpoint import Model, load_model
from diffusion.sampling import SamplerConfig, timesteps_of

from .tracking import DIGEST_TAG, MODEL_TAG, TRAINING_TAG, ModelVersion, pull_model

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_PART_IMAGES = 1024
PARTS_AT_LEAST = 16


@dataclass(frozen=True)
class Part:
    """The images start … stop-1 of a request: one task's work."""

    number: int
    start: int
    stop: int


def parts_of(num: int, chunk: int) -> Sequence[Part]:
    """Cut a request into parts of whole chunks: 16 or more if there are so many, of 1,024 images or a chunk at most."""
    size = max(1, min(MAX_PART_IMAGES, -(-num // PARTS_AT_LEAST)) // chunk) * chunk
    return [Part(i, start, min(start + size, num)) for i, start in enumerate(range(0, num, size))]


@dataclass(frozen=True)
class ModelFiles:
    """A model from the registry, as bytes."""

    version: ModelVersion
    files: dict[str, bytes]
    sha256: str


def model_files(version: ModelVersion) -> ModelFiles:
    """Pull a model, to be handed to tasks."""
    files = pull_model(version)
    return ModelFiles(version, files, hashlib.sha256(b"".join(files.values())).hexdigest())


def loaded(model: ModelFiles) -> Model:
    """The model, loaded once in a process: a worker goes from task to task."""
    if model.sha256 not in _LOADED:
        _LOADED.clear()
        _LOADED[model.sha256] = load_model(model.files.__getitem__)
    return _LOADED[model.sha256]


_LOADED: dict[str, Model] = {}


def check_sampler(settings: SamplerConfig, model: Model) -> None:
    """Raises ValueError if this model cannot be sampled with these settings."""
    num_timesteps = model.diffusion.num_timesteps
    if settings.guidance != 1 and not model.classes:
        raise ValueError(f"guidance must be 1 for a model without classes, got {settings.guidance:g}")
    if settings.steps > num_timesteps:
        raise ValueError(f"steps must be at most {num_timesteps} for this model, got {settings.steps}")
    first = timesteps_of(settings, model.diffusion)[0]
    if settings.sampler == "heun" and model.diffusion.alpha_bar_at(first) == 0:
        raise ValueError(
            f"sampler must not be heun with steps={settings.steps}: it cannot begin where no signal is left"
        )


def lineage_tags(model: ModelVersion) -> dict[str, str]:
    """The edges of the lineage that lead to what a model drew: data, training run, model."""
    return {
        MODEL_TAG: model.uri,
        TRAINING_TAG: model.run_id,
        DIGEST_TAG: model.tags[DIGEST_TAG],
    }
