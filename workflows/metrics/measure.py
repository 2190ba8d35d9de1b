"""Measuring a set of pictures beside the data: features and neighbours over Ray tasks, then the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.images import encode_png
from diffusion.grid import image_grid

from .features import first_tars, gather, make_features, read_first
from .judge import Neighbours, distances, memorisation
from .neighbours import MAX_QUERIES, SHOWN, nearest_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet
    from diffusion.data.shards import TarStats
    from diffusion.files import Folder

    from ..config import JudgeConfig, Workers
    from ..storage import Environment
    from .features import NetFile

NEIGHBOURS = "neighbours.png"
PIXELS = 640


@dataclass(frozen=True)
class Subject:
    """The pictures that are measured: a split of a set."""

    shards: ShardSet
    split: str
    key: str
    """what their features are kept under"""


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    metrics: dict[str, float]
    neighbours: bytes
    """PNG: the first pictures over the nearest training picture of each"""


def features_of(environment: Environment, net: NetFile, key: str) -> Folder:
    """Where a net's features of a set are kept."""
    return environment.features(f"{net.name}/{key}")


def check_alike(subject: Subject, data: ShardSet) -> None:
    """Raises ValueError if these pictures cannot be compared with that data."""
    mine, theirs = ((shards.image_size, shards.channels) for shards in (subject.shards, data))
    if mine != theirs:
        raise ValueError(
            f"pictures must be of the data's size and channels, {theirs[0]}x{theirs[0]}x{theirs[1]}, "
            f"got {mine[0]}x{mine[0]}x{mine[1]} in {subject.shards.folder.uri}"
        )


def measure(
    environment: Environment,
    subject: Subject,
    data: ShardSet,
    nets: Sequence[NetFile],
    config: JudgeConfig,
    workers: Workers,
    reference: str = "train",
) -> Measured:
    """Metrics by name, as of `judge`, and `n`, of how many pictures. Needs Ray, for features that are missing.

    `reference`: the split of the data that distances are to; the other one's distance to it is the held-out one.
    Features of the data are kept by its digest, those of the pictures by their own key.
    """
    known_tars, held_tars = (first_tars(data, split, config.reference_images) for split in ("train", "val"))
    known_outs = [features_of(environment, net, data.digest) for net in nets]
    make_features(data, [*known_tars, *held_tars], nets, known_outs, workers)
    tars = subject.shards.split(subject.split)
    outs = [features_of(environment, net, subject.key) for net in nets]
    make_features(subject.shards, tars, nets, outs, workers)
    asked = labels_asked(subject, data)
    metrics = {"n": float(subject.shards.num_samples(subject.split))}
    for net, out, known_out in zip(nets, outs, known_outs, strict=True):
        drawn, known, held_out = gather(out, tars), gather(known_out, known_tars), gather(known_out, held_tars)
        if reference == "val":
            known, held_out = held_out, known
        assert drawn is not None
        assert known is not None
        metrics |= distances(net.kind, drawn, known, held_out, asked)
    images, found = _neighbours(subject, data, known_tars, workers)
    metrics |= memorisation(found, asked)
    shown = torch.cat([images[:SHOWN], torch.from_numpy(found.of_samples.shown[: len(images)])])
    columns = min(SHOWN, len(images))
    return Measured(metrics, encode_png(image_grid(shown, columns, PIXELS)))


def labels_asked(subject: Subject, data: ShardSet) -> Int64[ndarray, "n"]:
    """The labels of all pictures, from the manifest; -1 for each if they are not those of the data's classes.

    Data that was added to may have further classes.
    """
    known = subject.shards.classes
    if data.classes[: len(known)] != known:
        return np.full(subject.shards.num_samples(subject.split), -1)
    tars = subject.shards.split(subject.split)
    columns = [subject.shards.manifest(tar, ["label"])["label"].to_numpy() for tar in tars]
    return np.concatenate(columns).astype(np.int64)


def _neighbours(
    subject: Subject, data: ShardSet, known_tars: Sequence[TarStats], workers: Workers
) -> tuple[UInt8[Tensor, "q c h w"], Neighbours]:
    """The first pictures, and the nearest training pictures of these and of the first held-out ones."""
    images, _ = read_first(subject.shards, subject.split, MAX_QUERIES)
    held_out, _ = read_first(data, "val", MAX_QUERIES)
    found, num = nearest_in(data, known_tars, torch.cat([images, held_out]), workers), len(images)
    mine, others = (
        found._replace(distances=found.distances[of], labels=found.labels[of]) for of in (slice(num), slice(num, None))
    )
    return images, Neighbours(mine, others if len(held_out) else None)
