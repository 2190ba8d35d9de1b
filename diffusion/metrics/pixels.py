"""What pixels alone tell: thumbnails as features, the nearest picture of others, and how well one was mended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64, UInt8
    from numpy import ndarray
    from torch import Tensor

THUMBNAIL = 8
CANDIDATES = 4
QUERIES = 256
"""at a time"""


def thumbnails(images: UInt8[Tensor, "n c h w"]) -> Float64[ndarray, "n d"]:
    """Pictures averaged down to 8x8 (if they are larger), in [0, 1], flat: the features of `frechet_distance` here."""
    side = min(THUMBNAIL, images.shape[-1])
    return F.adaptive_avg_pool2d(images.double() / 255, side).flatten(1).numpy()


def psnr(mean_squared_error: float) -> float:
    """Peak signal to noise ratio in dB of 8-bit pictures, from their mean squared error in squared 8-bit steps."""
    return math.inf if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)


def nearest(
    queries: UInt8[Tensor, "n c h w"], references: UInt8[Tensor, "m c h w"]
) -> tuple[Float[ndarray, "n"], Int64[ndarray, "n"]]:
    """Each query's nearest reference: its Euclidean distance in pixels scaled to [0, 1], and its index.

    A matrix product finds the few that may be it, whose distances are then taken exactly: by product alone, that of a
    copy would be up to 0.03.
    """
    known = references.flatten(1).float() / 255
    squares, num = known.square().sum(dim=1), min(CANDIDATES, len(known))
    distances, indices = [], []
    for part in queries.split(QUERIES):
        asked = part.flatten(1).float() / 255
        near = (squares - 2 * asked @ known.T).topk(num, largest=False).indices.sort(dim=1).values
        exact = torch.stack([(asked - known[candidates]).norm(dim=1) for candidates in near.T], dim=1)
        found = exact.min(dim=1)
        distances.append(found.values)
        indices.append(near.gather(1, found.indices[:, None]).squeeze(1))
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()
