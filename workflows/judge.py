"""How good samples are, beside the data that the model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.loader import SampleReader
from diffusion.metrics.frechet import frechet_distance, moments
from diffusion.metrics.pixels import nearest, thumbnails

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet

MAX_IMAGES = 10_000
"""of each side are looked at: the first ones"""


def judge(samples: ShardSet, data: ShardSet) -> dict[str, float]:
    """Pixel metrics of a set of samples against its training data, by name; `n` is how many samples they are of.

    frechet_thumbnails: Fréchet distance between 8x8 thumbnails of samples and training pictures, lower is better;
    frechet_thumbnails_held_out: that of real pictures kept out of training, what a perfect model would get.
    nearest_distance_ratio: median distance to the nearest training picture over that of held-out real pictures;
    far below 1 means copies. nearest_label_agreement: how often that picture has the label asked for.
    """
    drawn, asked = read_images(samples, "train")
    known, labels = read_images(data, "train")
    distances, indices = nearest(drawn, known)
    known_moments = moments(thumbnails(known))
    metrics = {"n": float(len(drawn)), "nearest_distance": float(np.median(distances))}
    if len(drawn) > 1:
        metrics["frechet_thumbnails"] = frechet_distance(moments(thumbnails(drawn)), known_moments)
    if data.classes:
        metrics["nearest_label_agreement"] = float((labels[indices] == asked).mean())
    if data.num_samples("val") > 1:
        held_out, _ = read_images(data, "val")
        metrics["frechet_thumbnails_held_out"] = frechet_distance(moments(thumbnails(held_out)), known_moments)
        if (median := float(np.median(nearest(held_out, known)[0]))) > 0:
            metrics["nearest_distance_ratio"] = metrics["nearest_distance"] / median
    return metrics


def read_images(shards: ShardSet, split: str) -> tuple[UInt8[Tensor, "n c h w"], Int64[ndarray, "n"]]:
    """The first pictures and labels of a split, in its order."""
    images, labels = SampleReader(shards, split).read(range(min(MAX_IMAGES, shards.num_samples(split))))
    return torch.from_numpy(images), labels
