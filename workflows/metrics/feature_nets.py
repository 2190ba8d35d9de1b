"""Where the nets come from that samples are compared by: trained on the data and tracked, or fetched once and kept."""

from __future__ import annotations

import hashlib
import urllib.request
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.loader import LoadConfig, SampleReader
from diffusion.files import Folder
from diffusion.metrics.classifier import accuracy, save_classifier, train_classifier
from diffusion.metrics.inception import load_inception

from ..cluster.tasks import map_tasks
from ..config import FEATURES, Workers
from ..progress import say
from ..storage import locked
from ..tracking import DIGEST_TAG, Tracker
from .features import DATASET_NET, INCEPTION, NetFile, first_tars, read_first

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    from diffusion.data.shard_set import ShardSet

    from ..config import JudgeConfig
    from ..storage import Environment

NET_VERSION = 2
"""of how the net of a data set is trained: another one makes other features"""
WEIGHTS = "classifier.safetensors"
LEARN_FROM, HELD_OUT = 50_000, 2000
"""pictures, about so many: those of the first tars, as good as any. Of more, each picture would take another tar"""
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"
"""the beginning of it, as the file's own name says"""
TIMEOUT_S = 30


def feature_nets(
    environment: Environment, tracker: Tracker, config: JudgeConfig, name: str, data: ShardSet
) -> list[NetFile]:
    """The nets that are asked for, in this order; `name` is the experiment that a training of one is tracked in.

    Needs Ray where the data's own net has not been trained yet. Raises ValueError, saying where to get them, for
    weights of Inception-v3 that are not there, or not those.
    """
    nets = []
    for kind in sorted(set(config.features), key=FEATURES.index):
        if kind == DATASET_NET:
            nets.append(_named(kind, dataset_net(environment, tracker, name, data)))
        elif kind == INCEPTION:
            nets.append(_named(kind, inception_weights(environment, config.inception_weights)))
        else:
            nets.append(NetFile(kind, kind))
    return nets


def check_nets(environment: Environment, config: JudgeConfig) -> None:
    """Raises ValueError, as `feature_nets`, before anything is started or drawn."""
    if INCEPTION in config.features:
        inception_weights(environment, config.inception_weights)


def _named(kind: str, weights: bytes) -> NetFile:
    return NetFile(kind, f"{kind}-{hashlib.sha256(weights).hexdigest()[:12]}", weights)


def dataset_net(environment: Environment, tracker: Tracker, name: str, data: ShardSet) -> bytes:
    """The weights of a small net that has learnt this data's labels, or, without any, which way up its pictures are.

    Trained once for a data set, in an MLflow run of its own that has them and how often they are right on held-out
    pictures; found by its digest from then on.
    """
    key = f"{data.digest}-v{NET_VERSION}"
    folder = environment.features(f"{DATASET_NET}-v{NET_VERSION}/{data.digest}")
    if folder.exists(WEIGHTS):
        return folder.read(WEIGHTS)
    with locked(environment, f"features-{key}"):
        if not folder.exists(WEIGHTS):
            folder.write(WEIGHTS, _tracked_net(tracker, name, data, key))
    return folder.read(WEIGHTS)


def _tracked_net(tracker: Tracker, name: str, data: ShardSet, key: str) -> bytes:
    found = tracker.finished(name, "features", key)
    with TemporaryDirectory() as temporary:
        if found is not None:
            return tracker.download(found.run_id, WEIGHTS, Path(temporary)).read_bytes()
        run_id = tracker.start(name, "features", key, {DIGEST_TAG: data.digest}, {"net_version": NET_VERSION})
        with tracker.ending(run_id):
            say(f"training the net that {name} is judged by: once for a data set")
            ((weights, right),) = map_tasks(_train_net, [data], None, Workers(num_workers=1))
            tracker.log_dataset(run_id, name, data.digest, data.folder.uri)
            tracker.log_metrics(run_id, right)
            file = Path(temporary) / WEIGHTS
            file.write_bytes(weights)
            tracker.log_file(run_id, file)
        return bytes(weights)


def _train_net(data: ShardSet, _: None) -> tuple[bytes, dict[str, float]]:
    """In a Ray task: the weights, and how good they are, by name."""
    reader, tars = SampleReader(data, "train", LoadConfig(keep_decoded="auto")), first_tars(data, "train", LEARN_FROM)
    reader.raw.manifests.limit = len(tars)
    num = sum(tar.num_samples for tar in tars)
    net = train_classifier(partial(_read, reader), num, data.channels, len(data.classes))
    images, labels = read_first(data, "val", HELD_OUT)
    known = np.full(len(labels), True) if net.tells_turns else labels >= 0
    if not known.any():
        return save_classifier(net), {}
    right = accuracy(net, images[torch.from_numpy(known)], torch.from_numpy(labels[known]))
    return save_classifier(net), {"accuracy": right, "n": float(known.sum())}


def _read(reader: SampleReader, positions: Int64[ndarray, "b"]) -> tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, "b"]]:
    images, labels = reader.read(positions.tolist())
    return torch.from_numpy(images), torch.from_numpy(labels)


def inception_weights(environment: Environment, place: str) -> bytes:
    """The weights of FID's Inception-v3: of a file or URL, or fetched once where the network allows, and kept.

    Raises ValueError, saying where to get them.
    """
    folder, name = environment.features("inception"), "weights.pth"
    if place and not place.startswith(("http://", "https://")):
        file = Folder(place)
        try:
            data = file.parent.read(file.name)
        except OSError as err:
            raise ValueError(f"inception_weights must be a file or URL; {place} cannot be read: {err}") from None
        return _checked(data, place)
    if folder.exists(name):
        return folder.read(name)
    weights = _fetched(place or INCEPTION_URL)
    folder.write(name, weights)
    return weights


def _fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s) only
            data: bytes = answer.read()
    except (OSError, ValueError, HTTPException) as err:
        raise ValueError(
            f"features=inception needs the weights of Inception-v3, and {url} cannot be fetched "
            f"({getattr(err, 'reason', err)}): download them elsewhere and give --inception-weights FILE"
        ) from None
    if not hashlib.sha256(data).hexdigest().startswith(INCEPTION_SHA256):
        raise ValueError(f"{url} is not the file of FID's weights: its sha256 does not begin with {INCEPTION_SHA256}")
    return _checked(data, url)


def _checked(data: bytes, place: str) -> bytes:
    """Raises ValueError if these are no weights of Inception-v3."""
    load_inception(data, place)
    return data
