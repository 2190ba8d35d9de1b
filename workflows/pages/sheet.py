"""Some pictures of a shard set as one, a class a column where there are few classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from diffusion.data.images import encode_png
from diffusion.data.loader import SampleReader
from diffusion.grid import WHITE, image_grid

from .page import Picture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Int64
    from numpy import ndarray

    from diffusion.data.shard_set import ShardSet

COLUMNS = 10
MAX_CLASSES = 16
"""that have columns of their own"""
LOOK_AT = 200
"""pictures are read, to find enough of each class"""


def sheet(shards: ShardSet, positions: Iterable[int], alt: str, what: str, num_rows: int) -> Picture:
    """The pictures at these positions of the training split, by class, with how many of `what` they are.

    Raises ValueError or OSError where they cannot be read.
    """
    images, labels = SampleReader(shards, "train").read(positions)
    columns, heads = columns_by_class(labels, shards.classes, num_rows)
    blank = torch.full((1, *images.shape[1:]), WHITE, dtype=torch.uint8)
    order = [i for row in zip(*columns, strict=True) for i in row]
    pixels = torch.cat([torch.from_numpy(images), blank])[order]
    counted = f"{sum(i >= 0 for i in order):,} of the {shards.num_samples('train'):,} {what}."
    return Picture(encode_png(image_grid(pixels, len(columns))), alt, heads, counted)


def columns_by_class(
    labels: Int64[ndarray, "n"], classes: list[str], num_rows: int
) -> tuple[list[list[int]], tuple[str, ...]]:
    """Which pictures go into which column from the top down (-1: none), at most `num_rows`, and the columns' heads.

    Two to MAX_CLASSES classes have as many columns each as there is room for; of others, or none, the pictures
    come row by row in their order, without heads.
    """
    present = [label for label in range(len(classes)) if (labels == label).any()]
    if not 2 <= len(present) <= MAX_CLASSES:
        rows = min(num_rows, -(-len(labels) // COLUMNS))
        width = min(COLUMNS, len(labels))
        return [[i if (i := row * COLUMNS + c) < len(labels) else -1 for row in range(rows)] for c in range(width)], ()
    each = max(1, COLUMNS // len(present))
    members = {label: (labels == label).nonzero()[0].tolist()[: num_rows * each] for label in present}
    rows = -(-max(map(len, members.values())) // each)
    columns = [
        [found[i] if (i := row * each + c) < len(found) else -1 for row in range(rows)]
        for found in members.values()
        for c in range(each)
    ]
    return columns, tuple(classes[label] for label in present for _ in range(each))
