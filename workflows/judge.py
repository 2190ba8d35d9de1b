"""How good samples are, beside the data that the model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.loader import SampleReader
from diffusion.metrics.bootstrap import interval
from diffusion.metrics.frechet import frechet_distance, moments
from diffusion.metrics.kernel import SAMPLES_AT_LEAST as KERNEL_NEEDS
from diffusion.metrics.kernel import kernel_distance
from diffusion.metrics.manifold import NEIGHBOURS, precision_recall
from diffusion.metrics.pixels import nearest, thumbnails

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet

MAX_IMAGES = 10_000
"""of each side are looked at: the first ones"""


def judge(samples: ShardSet, data: ShardSet) -> dict[str, float]:
    """Pixel metrics of a set of samples against its training data, by name; `n` is how many samples they are of.

    Those of 8x8 thumbnails are of `distances`. nearest_distance_ratio: median distance to the nearest training picture
    over that of held-out real pictures; far below 1 means copies. nearest_label_agreement: how often that picture has
    the label asked for.
    """
    drawn, asked = read_images(samples, "train")
    known, labels = read_images(data, "train")
    held_out, _ = read_images(data, "val")
    nearest_distances, indices = nearest(drawn, known)
    metrics = {"n": float(len(drawn)), "nearest_distance": float(np.median(nearest_distances))}
    metrics |= distances("thumbnails", *(thumbnails(images) for images in (drawn, known, held_out)))
    if data.classes:
        metrics["nearest_label_agreement"] = float((labels[indices] == asked).mean())
    if len(held_out) and (median := float(np.median(nearest(held_out, known)[0]))) > 0:
        metrics["nearest_distance_ratio"] = metrics["nearest_distance"] / median
    return metrics


def distances(
    kind: str, drawn: Float[ndarray, "n d"], known: Float[ndarray, "m d"], held_out: Float[ndarray, "k d"]
) -> dict[str, float]:
    """How far samples are from the training data in features of this kind, by name; what too few allow is left out.

    frechet_KIND: Fréchet distance, lower is better; _low and _high: its bootstrap interval over samples; _held_out:
    that of real pictures kept out of training, what a perfect model would get. kernel_KIND: kernel distance; _error:
    its standard error. precision_KIND, recall_KIND: with as many training pictures as samples.
    """
    metrics: dict[str, float] = {}
    known_moments, num = moments(known), min(len(drawn), len(known))
    if len(drawn) > 1:
        found = interval(lambda indices: frechet_distance(moments(drawn[indices]), known_moments), len(drawn))
        metrics |= dict(zip((f"frechet_{kind}{end}" for end in ("", "_low", "_high")), found, strict=True))
    if len(held_out) > 1:
        metrics[f"frechet_{kind}_held_out"] = frechet_distance(moments(held_out), known_moments)
    if num >= KERNEL_NEEDS:
        metrics[f"kernel_{kind}"], metrics[f"kernel_{kind}_error"] = kernel_distance(drawn, known)
    if num > NEIGHBOURS:
        sides = (torch.from_numpy(features[:num]) for features in (drawn, known))
        metrics[f"precision_{kind}"], metrics[f"recall_{kind}"] = precision_recall(*sides)
    return metrics


def read_images(shards: ShardSet, split: str) -> tuple[UInt8[Tensor, "n c h w"], Int64[ndarray, "n"]]:
    """The first pictures and labels of a split, in its order."""
    images, labels = SampleReader(shards, split).read(range(min(MAX_IMAGES, shards.num_samples(split))))
    return torch.from_numpy(images), labels
