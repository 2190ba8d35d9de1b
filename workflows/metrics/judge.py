"""How good samples are, beside the data that the model was trained on: features to numbers, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.metrics.bootstrap import Interval, interval
from diffusion.metrics.frechet import frechet_distance, moments
from diffusion.metrics.inception_score import score_of_rows
from diffusion.metrics.kernel import SAMPLES_AT_LEAST as KERNEL_NEEDS
from diffusion.metrics.kernel import kernel_distance
from diffusion.metrics.manifold import NEIGHBOURS, among

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from numpy import ndarray

    from .features import SetFeatures
    from .neighbours import Nearest

MAX_PAIRED = 10_000
"""vectors of either side that are compared each with each: the first ones"""
CHEAP = 512
"""features: a bootstrap of more has fewer draws, each of which takes seconds"""
FEW_DRAWS = 50


def distances(
    kind: str, drawn: SetFeatures, known: SetFeatures, held_out: SetFeatures | None, asked: Int64[ndarray, "n"]
) -> dict[str, float]:
    """How far samples are from the training data in features of this kind, by name; what too few allow is left out.

    frechet_KIND: Fréchet distance, lower is better; frechet_KIND_held_out: that of real pictures kept out of training,
    what a perfect model would get. kernel_KIND: kernel distance; _error: its standard error. precision_KIND,
    recall_KIND: with as many training pictures as samples. inception_score_KIND and label_agreement_KIND, the share
    that the net takes for the label asked for (and _worst, of the class with the least), where it knows the classes.
    All but kernel_KIND have _low and _high, the ends of a bootstrap interval over samples; all have _n, of how many.
    """
    metrics: dict[str, float] = {}
    if drawn.moments.num_samples > 1 and known.moments.num_samples > 1:
        metrics |= _ends(f"frechet_{kind}", _frechet(drawn, known), drawn.moments.num_samples)
    if held_out is not None and held_out.moments.num_samples > 1:
        metrics[f"frechet_{kind}_held_out"] = frechet_distance(known.moments, held_out.moments)
    ours, theirs = (side.vectors[:MAX_PAIRED] for side in (drawn, known))
    num = min(len(ours), len(theirs))
    if num >= KERNEL_NEEDS:
        metrics[f"kernel_{kind}"], metrics[f"kernel_{kind}_error"] = kernel_distance(ours, theirs)
        metrics[f"kernel_{kind}_n"] = float(num)
    if num > NEIGHBOURS:
        samples, reals = (torch.from_numpy(vectors[:num]) for vectors in (ours, theirs))
        metrics |= _share(f"precision_{kind}", among(samples, reals).numpy())
        metrics |= _share(f"recall_{kind}", among(reals, samples).numpy())
    if drawn.logits is not None:
        metrics |= _by_class(kind, drawn.logits, asked)
    return metrics


def _frechet(drawn: SetFeatures, known: SetFeatures) -> Interval:
    """The distance of all samples; the interval is that of the vectors that are kept, about it."""
    value, vectors = frechet_distance(known.moments, drawn.moments), drawn.vectors
    draws = {} if vectors.shape[1] <= CHEAP else {"draws": FEW_DRAWS}
    found = interval(lambda rows: frechet_distance(known.moments, moments(vectors[rows])), len(vectors), **draws)
    return Interval(value, found.low - found.value + value, found.high - found.value + value)


def _by_class(kind: str, logits: Float[ndarray, "n k"], asked: Int64[ndarray, "n"]) -> dict[str, float]:
    """What a net that knows classes makes of samples; whether they are of the classes asked for, where it knows those.

    Inception-v3 knows others than the data's, a net that tells rotations none.
    """
    score = score_of_rows(torch.from_numpy(logits))
    found = interval(lambda rows: score(torch.from_numpy(rows)), len(logits))
    metrics = _ends(f"inception_score_{kind}", found, len(logits))
    asked = asked[: len(logits)]
    if kind == "dataset" and len(asked) and asked.min() >= 0:
        right = logits.argmax(axis=1) == asked
        metrics |= _share(f"label_agreement_{kind}", right)
        by_class = [float(right[asked == label].mean()) for label in np.unique(asked)]
        metrics[f"label_agreement_{kind}_worst"] = min(by_class)
    return metrics


@dataclass(frozen=True)
class Neighbours:
    """The nearest training pictures of samples, and of real pictures that were kept out of training."""

    of_samples: Nearest
    of_held_out: Nearest | None


def memorisation(found: Neighbours, asked: Int64[ndarray, "n"]) -> dict[str, float]:
    """Whether samples are copies, by name.

    nearest_distance: median Euclidean distance in pixels of [0, 1] to the nearest training picture, of so many as
    nearest_distance_among says; nearest_distance_ratio: the same over that of held-out pictures, 0 for copies;
    nearest_label_agreement: how often that picture has the label asked for. Each but the second has its ends and _n.
    """
    mine = found.of_samples.distances
    metrics = _ends("nearest_distance", interval(lambda rows: float(np.median(mine[rows])), len(mine)), len(mine))
    metrics["nearest_distance_among"] = float(found.of_samples.num_seen)
    if len(asked) and asked.min() >= 0:
        metrics |= _share("nearest_label_agreement", found.of_samples.labels == asked[: len(mine)])
    if found.of_held_out is not None and (median := float(np.median(found.of_held_out.distances))) > 0:
        ratio = interval(lambda rows: float(np.median(mine[rows])) / median, len(mine))
        metrics |= _ends("nearest_distance_ratio", ratio, len(mine))
    return metrics


def _share(name: str, hits: Bool[ndarray, "n"]) -> dict[str, float]:
    return _ends(name, interval(lambda rows: float(hits[rows].mean()), len(hits)), len(hits))


def _ends(name: str, found: Interval, num: int) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_n": float(num)}
