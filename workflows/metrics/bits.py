"""Bits per dimension of held-out pictures under a model, over Ray tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.likelihood import bits_per_dim
from diffusion.metrics.bootstrap import interval
from diffusion.process import to_unit_range
from diffusion.sampling import image_noise, in_chunks, network_denoiser
from diffusion.seeding import image_seeds

from ..cluster.connection import drawing_workers
from ..cluster.tasks import make_missing
from ..drawing import ModelFiles, Part, loaded
from .features import read_first

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet

    from ..config import Workers

SEED = 0


@dataclass(frozen=True)
class _Request:
    model: ModelFiles
    images: UInt8[Tensor, "n c h w"]
    labels: Int64[ndarray, "n"]


def held_out_bits(model: ModelFiles, data: ShardSet, num: int, workers: Workers) -> dict[str, float]:
    """Those of the first `num` held-out pictures, in classes' turns if they lie so; none if there are no pictures."""
    images, labels = read_first(data, "val", num)
    return bits(model, images, labels, workers) if len(images) else {}


def bits(
    model: ModelFiles, images: UInt8[Tensor, "n c h w"], labels: Int64[ndarray, "n"], workers: Workers
) -> dict[str, float]:
    """The variational bound of these pictures in bits per dimension, with its bootstrap interval, by name.

    -log2 p(x) divided by the number of values a picture has (Ho et al. 2020, table 1); its `_n` says of how many.
    """
    chunk = loaded(model).chunk
    parts = [Part(i, start, min(start + chunk, len(images))) for i, start in enumerate(range(0, len(images), chunk))]
    request = _Request(model, images, labels)
    drawing = drawing_workers(workers)
    found = make_missing("bits", parts, lambda _: None, _bits_of_part, request, drawing, len, len(images))
    of_all = np.array([value for part in found for value in part])
    value, low, high = interval(lambda rows: float(of_all[rows].mean()), len(of_all))
    return {
        "bits_per_dim": value, "bits_per_dim_low": low, "bits_per_dim_high": high, "bits_per_dim_n": float(len(of_all)),
    }  # fmt: skip


def _bits_of_part(part: Part, request: _Request) -> list[float]:
    """In a Ray task: one chunk, of the shape that the model draws in."""
    model, seeds = loaded(request.model), image_seeds(SEED, part.start, part.stop)
    images, labels = request.images[part.start : part.stop], request.labels[part.start : part.stop]
    labels = np.where(labels < 0, len(model.classes), labels)  # without one: of any class

    def bound(rows: list[int]) -> Tensor:
        asked = torch.from_numpy(labels[rows]) if model.classes else None
        noise = image_noise(model.unet, [seeds[row] for row in rows], "bits")
        device = next(model.unet.parameters()).device
        denoise = network_denoiser(model.unet, model.diffusion, None if asked is None else asked.to(device))
        x0 = to_unit_range(images[rows]).to(device)
        return bits_per_dim(denoise, model.diffusion, x0, noise).total.cpu()

    on_cpu = next(model.unet.parameters()).device.type == "cpu"
    return [float(value) for found in in_chunks(len(images), model.chunk, bound, on_cpu) for value in found]
