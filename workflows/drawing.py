"""What the jobs that draw have in common: the model on its way to the tasks, and how a request is cut into parts.

Ray's workers import this, so it knows nothing of MLflow, which takes longer to import than a part to draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import torch

from diffusion.checkpoint import Model, load_model
from diffusion.sampling import SamplerConfig, timesteps_of

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
    """Cut a request into parts of whole chunks: about 16 or more if it has them, of 1,024 images or a chunk at most."""
    size = max(1, min(MAX_PART_IMAGES, -(-num // PARTS_AT_LEAST)) // chunk) * chunk
    return [Part(i, start, min(start + size, num)) for i, start in enumerate(range(0, num, size))]


@dataclass(frozen=True)
class ModelFiles:
    """A model from the registry, as bytes."""

    uri: str
    """models:/NAME/VERSION"""
    files: dict[str, bytes]
    sha256: str


def model_files(uri: str, files: dict[str, bytes]) -> ModelFiles:
    """A model that was pulled, to be handed to tasks."""
    return ModelFiles(uri, files, hashlib.sha256(b"".join(files.values())).hexdigest())


def loaded(model: ModelFiles) -> Model:
    """The model, loaded once in a process: a worker goes from task to task. On the GPU that Ray gave it, if it did."""
    key = model.sha256, device()
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load_model(model.files.__getitem__)
        _LOADED[key].unet.to(device())
    return _LOADED[key]


_LOADED: dict[tuple[str, torch.device], Model] = {}


def device() -> torch.device:
    """The GPU that Ray gave to this task, or else the CPU.

    That there are GPUs to be seen is not enough: Ray 2.60 hides those of its node from no task that asked for none, and
    a training may be at work on them.
    """
    given = ray.is_initialized() and ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return torch.device("cuda" if given and torch.cuda.is_available() else "cpu")


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


def chosen_labels(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The labels that pictures take turns with: the classes of these names or numbers, or all.

    Raises ValueError for one that the model does not know, or where it knows none.
    """
    if names and not classes:
        raise ValueError(f"labels must not be given for a model without classes, got {' '.join(names)}")
    labels = []
    for name in names:
        if name in classes:
            labels.append(list(classes).index(name))
        elif name.isdecimal() and int(name) < len(classes):
            labels.append(int(name))
        else:
            shown = ", ".join(classes[:20])
            raise ValueError(f"labels must be 0 to {len(classes) - 1} or names of classes ({shown}), got {name!r}")
    return labels or list(range(len(classes)))
