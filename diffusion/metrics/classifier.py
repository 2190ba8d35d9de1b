"""A data set's own feature net: a small classifier of its labels or, without any, of how pictures are turned.

To tell 0, 90, 180 and 270 degrees apart it has to know what is in a picture (Gidaris et al. 2018). Small enough to be
trained on a CPU in a minute or two, on pictures of any size.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from ..checkpoint import check_shapes, read_tensors, shapes_of
from ..norm import Norm
from ..seeding import generator
from .features import Features, in_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from jaxtyping import Float, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

    ReadPictures = Callable[[Int64[ndarray, "b"]], tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, "b"]]]

FORMAT_VERSION = 1
WIDTHS = (32, 64, 128, 128)
NORM_GROUPS = 8
SIDE = 32
"""what larger pictures are averaged down to"""
LAST_SIDE = 2
"""is not halved any more. 4 would take twice as long and tell turns worse"""
TURNS = 4
STEPS = 1000
BATCH = 128
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01
SHIFT = 8
"""pictures are shifted by up to their side over this, while learning"""
PICTURES_AT_A_TIME = 512
NO_LABEL = -1


class Classifier(nn.Module):
    """A feature net of 128-d vectors, averaged over the last pixels; its logits are of the data set's classes.

    For less than two classes, which tell nothing apart, it is one of turns, and gives no logits.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        self.tells_turns = num_classes < 2
        widths = (channels, *WIDTHS)
        self.stages = nn.Sequential(*(Stage(width, out) for width, out in pairwise(widths)))
        self.head = nn.Linear(WIDTHS[-1], TURNS if self.tells_turns else num_classes)

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """In float32. Raises ValueError for pictures of other channels than it has learned from."""
        if images.shape[1] != self.channels:
            raise ValueError(f"this classifier needs pictures of {self.channels} channels, got {images.shape[1]}")
        return in_batches(self._of_batch, images, PICTURES_AT_A_TIME)

    def _of_batch(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        vectors = self.embed(prepared(images.to(self.head.weight.device)))
        return Features(vectors, None if self.tells_turns else self.head(vectors))

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 128"]:
        """The vectors of prepared pictures."""
        vectors: Tensor = self.stages(x).mean(dim=(2, 3))
        return vectors


class Stage(nn.Module):
    """A convolution, group normalisation and SiLU; half the side."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, padding=1)
        self.norm = Norm(NORM_GROUPS, out)

    def forward(self, x: Float[Tensor, "b i s s"]) -> Float[Tensor, "b o s2 s2"]:
        """A side that is small enough stays: pictures of any size go through the same stages."""
        stride = 2 if x.shape[-1] > LAST_SIDE else 1
        out: Tensor = self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, stride, padding=1))
        return out


def prepared(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """In [-1, 1], averaged down to 32x32 if they are larger."""
    x = images.float() / 127.5 - 1
    return F.adaptive_avg_pool2d(x, SIDE) if x.shape[-1] > SIDE else x


def train_classifier(
    read: ReadPictures, num_samples: int, channels: int, num_classes: int, seed: int = 0
) -> Classifier:
    """A classifier of the pictures 0 … num_samples-1 that `read` gives by index, with labels; -1 is none.

    Takes 1,000 steps of 128 pictures, drawn with replacement. Equal arguments give equal weights, on a machine of one
    kind with as many threads. Raises ValueError for no pictures.
    """
    if num_samples < 1:
        raise ValueError(f"a classifier needs at least 1 picture to learn from, got {num_samples}")
    classifier = initial(channels, num_classes, seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    for step in range(STEPS):
        rng = generator(seed, "classifier", step=step)
        images, labels = read(rng.integers(num_samples, size=BATCH))
        x = shifted(prepared(images), rng)
        if classifier.tells_turns:
            labels = torch.from_numpy(rng.integers(TURNS, size=len(x)))
            x = turned(x, labels)
        optimizer.zero_grad()
        mean_loss(classifier.head(classifier.embed(x)), labels).backward()
        optimizer.step()
        decay.step()
    return classifier.eval().requires_grad_(False)


def initial(channels: int, num_classes: int, seed: int) -> Classifier:
    """A classifier that has learned nothing, its convolutions and head drawn as in He et al. (2015)."""
    with torch.device("meta"):  # else torch would draw weights first, from its global generator
        classifier = Classifier(channels, num_classes)
    classifier.to_empty(device="cpu")
    for lane, (name, tensor) in enumerate(classifier.state_dict().items()):
        if tensor.dim() > 1:
            drawn = generator(seed, "classifier weights", lane=lane).standard_normal(tensor.shape, dtype="float32")
            tensor.copy_(torch.from_numpy(drawn * math.sqrt(2 / tensor[0].numel())))
        else:
            tensor.fill_(0 if name.endswith("bias") else 1)
    return classifier


def shifted(x: Float[Tensor, "b c h w"], rng: np.random.Generator) -> Float[Tensor, "b c h w"]:
    """Each picture moved on its own by up to an eighth of its side in either direction, its border repeated."""
    b, _, h, w = x.shape
    reach = h // SHIFT
    down, right = torch.from_numpy(rng.integers(2 * reach + 1, size=(2, b, 1)))
    rows, columns = down + torch.arange(h), right + torch.arange(w)
    padded = F.pad(x, (reach,) * 4, mode="replicate").permute(0, 2, 3, 1)
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def turned(x: Float[Tensor, "b c s s"], turns: Int64[Tensor, "b"]) -> Float[Tensor, "b c s s"]:
    """Each picture turned by so many quarters."""
    return torch.stack([x.rot90(quarters, (2, 3)) for quarters in range(TURNS)])[turns, torch.arange(len(x))]


def mean_loss(logits: Float[Tensor, "b k"], labels: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
    """Of the pictures that have a label; 0 if none has."""
    total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp(min=1)


def accuracy(classifier: Classifier, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, "n"]) -> float:
    """How many pictures' classes it tells, 0 … 1; of a classifier of turns, of how many pictures' four turns.

    Those do not look at the labels. Raises ValueError for no pictures.
    """
    if not len(images):
        raise ValueError("an accuracy needs at least 1 picture, got 0")
    if classifier.tells_turns:
        labels = torch.arange(TURNS).repeat_interleave(len(images))
        images = torch.cat([images.rot90(quarters, (2, 3)) for quarters in range(TURNS)])
    told = classifier.head(classifier(images).vectors.to(classifier.head.weight.device)).argmax(dim=1)
    return float((told.cpu() == labels).float().mean())


def save_classifier(classifier: Classifier) -> bytes:
    """A safetensors file. Equal classifiers, equal bytes."""
    said = {
        "format_version": FORMAT_VERSION,
        "channels": classifier.channels,
        "num_classes": classifier.num_classes,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    # One entry: safetensors writes several in any order.
    return safetensors.torch.save(weights, metadata={"classifier": json.dumps(said)})


def load_classifier(data: bytes, name: str) -> Classifier:
    """What `save_classifier` wrote, on the CPU.

    Raises ValueError, naming the file, if it is damaged, of another format or no classifier.
    """
    weights = read_tensors(data, name)
    try:
        said = _metadata(data)
        version, channels, num_classes = (said[key] for key in ("format_version", "channels", "num_classes"))
    except (KeyError, ValueError, TypeError) as err:
        raise ValueError(f"{name} is not a classifier's: {type(err).__name__}: {err}") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{name} must be of a classifier's format_version {FORMAT_VERSION}, got {version}")
    if not (isinstance(channels, int) and channels > 0 and isinstance(num_classes, int) and num_classes >= 0):
        raise ValueError(f"{name} is damaged: a classifier of {channels} channels and {num_classes} classes")
    with torch.device("meta"):
        classifier = Classifier(channels, num_classes)
    check_shapes(shapes_of(classifier.state_dict()), shapes_of(weights), f"{name} is damaged")
    for key, tensor in weights.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is damaged: {key} must be of finite float32 numbers")
    classifier.load_state_dict(weights, assign=True)
    return classifier.eval().requires_grad_(False)


def _metadata(data: bytes) -> dict[str, Any]:
    # Of safetensors' own functions, only one that opens a file gives it.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["classifier"])
    return found
