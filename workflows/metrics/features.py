"""Features of pictures: made by tasks, a file a tar, so that none is made twice; gathered by the job that compares.

Ray's workers import this, so it knows nothing of MLflow.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.loader import LoadConfig, SampleReader
from diffusion.metrics.classifier import load_classifier
from diffusion.metrics.features import thumbnail_features
from diffusion.metrics.frechet import Moments, merged, moments
from diffusion.metrics.inception import load_inception

from ..cluster.connection import drawing_workers
from ..cluster.tasks import make_missing
from ..drawing import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet
    from diffusion.data.shards import TarStats
    from diffusion.files import Folder
    from diffusion.metrics.features import FeatureNet

    from ..config import Workers

THUMBNAILS, DATASET_NET, INCEPTION = "thumbnails", "dataset", "inception"
MAX_KEPT = 50_000
"""vectors that a job holds in memory; moments are of all"""


@dataclass(frozen=True)
class NetFile:
    """A feature net on its way to the tasks."""

    kind: str
    """thumbnails, dataset or inception"""
    name: str
    """with the beginning of its weights' sha256: what features are kept under"""
    weights: bytes = b""


@dataclass(frozen=True)
class SetFeatures:
    """Of a set of pictures, as one net sees them."""

    moments: Moments
    """of all"""
    vectors: Float[ndarray, "n d"]
    """the first 50,000, in the set's order"""
    logits: Float[ndarray, "n k"] | None


def loaded_net(net: NetFile) -> FeatureNet:
    """The net, loaded once in a process."""
    if net.kind == THUMBNAILS:
        return thumbnail_features
    key = net.name, device()
    if key not in _LOADED:
        load = load_classifier if net.kind == DATASET_NET else load_inception
        _LOADED[key] = load(net.weights, net.name).to(device())
    return _LOADED[key]


_LOADED: dict[tuple[str, torch.device], FeatureNet] = {}


def file_of(tar: str) -> str:
    """Where a tar's features are, in the folder of their net and set."""
    return f"{tar.removesuffix('.tar')}.npz"


def write_features(net: NetFile, images: UInt8[Tensor, "n c h w"], out: Folder, tar: str) -> None:
    """Let a net see the pictures of a tar."""
    found = loaded_net(net)(images)
    data = io.BytesIO()
    if found.logits is None:
        np.savez(data, vectors=found.vectors.numpy())
    else:
        np.savez(data, vectors=found.vectors.numpy(), logits=found.logits.numpy())
    out.write(file_of(tar), data.getvalue())


def read_tar(shards: ShardSet, tar: TarStats) -> tuple[UInt8[Tensor, "n c h w"], Int64[ndarray, "n"]]:
    """All pictures and labels of a tar. Raises ValueError, naming it, if they are not what was committed."""
    tars = shards.split(tar.split)
    start = sum(each.num_samples for each in tars[: tars.index(tar)])
    return _read(shards, tar.split, range(start, start + tar.num_samples))


def first_tars(shards: ShardSet, split: str, at_least: int) -> list[TarStats]:
    """The first tars of a split that have so many pictures together, or all: shards are dealt at random."""
    chosen, num = [], 0
    for tar in shards.split(split):
        if num >= at_least:
            break
        chosen.append(tar)
        num += tar.num_samples
    return chosen


def read_first(shards: ShardSet, split: str, num: int) -> tuple[UInt8[Tensor, "n c h w"], Int64[ndarray, "n"]]:
    """The first pictures and labels (-1: none) of a split, in its order: `num`, or all that it has."""
    if not (num := min(num, shards.num_samples(split))):
        side = shards.image_size
        return torch.empty((0, shards.channels, side, side), dtype=torch.uint8), np.empty(0, np.int64)
    return _read(shards, split, range(num))


def _read(shards: ShardSet, split: str, positions: range) -> tuple[UInt8[Tensor, "n c h w"], Int64[ndarray, "n"]]:
    images, labels = SampleReader(shards, split, LoadConfig(keep_decoded="off")).read(positions)
    return torch.from_numpy(images), labels


@dataclass(frozen=True)
class _Request:
    """What the tasks that make a set's features share."""

    shards: ShardSet
    nets: Sequence[NetFile]
    outs: Sequence[Folder]


def make_features(
    shards: ShardSet, tars: Sequence[TarStats], nets: Sequence[NetFile], outs: Sequence[Folder], workers: Workers
) -> None:
    """The features of these tars, those that are missing, one folder of `outs` a net."""
    request = _Request(shards, nets, outs)
    names = [set(out.names()) for out in outs]

    def find(tar: TarStats) -> int | None:
        return tar.num_samples if all(file_of(tar.name) in known for known in names) else None

    if any(find(tar) is None for tar in tars):
        total = sum(tar.num_samples for tar in tars)
        make_missing("features", tars, find, _features_of_tar, request, drawing_workers(workers), int, total)


def _features_of_tar(tar: TarStats, request: _Request) -> int:
    """In a Ray task."""
    images, _ = read_tar(request.shards, tar)
    for net, out in zip(request.nets, request.outs, strict=True):
        write_features(net, images, out, tar.name)
    return tar.num_samples


def gather(out: Folder, tars: Iterable[TarStats]) -> SetFeatures | None:
    """What is kept of the features of these tars; moments are merged in float64. None of none."""
    parts: list[Moments] = []
    vectors: list[ndarray] = []
    logits: list[ndarray] = []
    num = 0
    for tar in tars:
        with np.load(io.BytesIO(out.read(file_of(tar.name)))) as arrays:
            parts = [merged([*parts, moments(arrays["vectors"])])]
            if num < MAX_KEPT:
                vectors.append(arrays["vectors"][: MAX_KEPT - num])
                logits += [arrays["logits"][: MAX_KEPT - num]] if "logits" in arrays else []
        num += tar.num_samples
    if not parts:
        return None
    return SetFeatures(parts[0], np.concatenate(vectors), np.concatenate(logits) if logits else None)
