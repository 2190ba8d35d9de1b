"""The part of a sample run that one Ray task draws: pictures to a tar, their features beside it, the film of the first.

It knows nothing of MLflow, which a worker would have to import first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffusion.data.images import decode_png, encode_png
from diffusion.data.layout import tar_name
from diffusion.data.shards import Sample, ShardReport, read_report, write_shard
from diffusion.data.tar import read_headers
from diffusion.film import FRAMES, animation, evenly, strip
from diffusion.process import to_uint8
from diffusion.sampling import sample_images
from diffusion.seeding import image_seeds

from .drawing import ModelFiles, Part, chosen_labels, loaded
from .metrics.features import NetFile, file_of, write_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import UInt8
    from torch import Tensor

    from diffusion.files import Folder

    from .config import SampleStage

REVERSE_FILM, REVERSE_STRIP = "reverse.gif", "reverse.png"
FILM_IMAGES, STRIP_IMAGES = 20, 4
FILM_PIXELS = 480


@dataclass(frozen=True)
class DrawRequest:
    """What all tasks of a sample run share."""

    stage: SampleStage
    model: ModelFiles
    out: Folder
    nets: Sequence[NetFile]
    features: Sequence[Folder]
    """where the features of each net go"""


def draw_part(part: Part, request: DrawRequest) -> ShardReport:
    """Draw the images of one part and write them, or only those of its features that are missing."""
    missing = [
        (net, out)
        for net, out in zip(request.nets, request.features, strict=True)
        if not out.exists(file_of(tar_name("train", part.number)))
    ]
    report = read_report(request.out, part.number)
    seeds = image_seeds(request.stage.seed, part.start, part.stop)
    labels = labels_of(part, request.stage, loaded(request.model).classes) if report is None else None
    images = _images(part, request, seeds, labels) if report is None else _drawn(part, request.out)
    for net, out in missing:
        write_features(net, images, out, tar_name("train", part.number))
    return report or _write(part, request, images, seeds, labels)


def labels_of(part: Part, stage: SampleStage, classes: Sequence[str]) -> list[int] | None:
    """The label of each image of a part; the chosen classes take turns, from the first image of the request on."""
    turns = chosen_labels(stage.labels, classes)
    return [turns[i % len(turns)] for i in range(part.start, part.stop)] if turns else None


def _images(
    part: Part, request: DrawRequest, seeds: Sequence[int], labels: Sequence[int] | None
) -> UInt8[Tensor, "n c h w"]:
    """The pictures of a part; of the first part, how they came to be goes beside the tars."""
    stage, model = request.stage, loaded(request.model)
    step, shown = count(), set(evenly(1 + stage.steps, FRAMES))
    states: list[Tensor] = []

    def watch(x: Tensor) -> None:
        if next(step) in shown:  # all of a thousand would be gigabytes
            states.append(to_uint8(x[:FILM_IMAGES]).cpu())

    watched = watch if part.number == 0 else None
    images = torch.cat(list(sample_images(model.unet, model.diffusion, seeds, labels, stage, model.chunk, watched)))
    if states:
        _write_film([state[: len(images)] for state in states], request.out)
    return images


def _write_film(states: Sequence[UInt8[Tensor, "n c h w"]], out: Folder) -> None:
    out.write(REVERSE_FILM, animation(states, min(10, len(states[0])), FILM_PIXELS))
    few = [state[:STRIP_IMAGES] for state in states]
    out.write(REVERSE_STRIP, encode_png(strip(few, 2 * FILM_PIXELS)))


def _write(
    part: Part,
    request: DrawRequest,
    images: UInt8[Tensor, "n c h w"],
    seeds: Sequence[int],
    labels: Sequence[int] | None,
) -> ShardReport:
    samples = []
    for index, (picture, seed) in enumerate(zip(images, seeds, strict=True)):
        image = encode_png(picture.permute(1, 2, 0).numpy())
        samples.append(
            Sample(
                index=index,
                split="train",
                image=image,
                label=-1 if labels is None else labels[index],
                side=images.shape[-1],
                source=f"{request.model.uri} seed={seed}",
                source_sha256=hashlib.sha256(image).hexdigest(),
            )
        )
    return write_shard(part.number, samples, [], request.out)


def _drawn(part: Part, out: Folder) -> UInt8[Tensor, "n c h w"]:
    """The pictures of a part that is there."""
    data = out.read(tar_name("train", part.number))
    members = [member for member in read_headers(data) if member.name.endswith(".png")]
    pictures = np.stack([decode_png(member.data(data)) for member in members])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
