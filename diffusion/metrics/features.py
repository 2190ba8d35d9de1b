"""What pictures are judged by: the vectors, and perhaps the classes, that a feature net makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from .pixels import thumbnails

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor


class Features(NamedTuple):
    """Of n pictures, on the CPU."""

    vectors: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"] | None
    """None where the net knows no classes"""


FeatureNet: TypeAlias = Callable[['UInt8[Tensor, "n c h w"]'], Features]
"""Any number of pictures, none included; a picture's features do not depend on what else is asked with it."""


def thumbnail_features(images: UInt8[Tensor, "n c h w"]) -> Features:
    """Pixels themselves, averaged down to 8x8; float64, in [0, 1]."""
    return Features(torch.from_numpy(thumbnails(images)), None)


def in_batches(net: FeatureNet, images: UInt8[Tensor, "n c h w"], batch: int) -> Features:
    """The features of any number of pictures, from a net that has memory for `batch` of them; without gradients."""
    with torch.inference_mode():
        parts = [net(part) for part in images.split(batch)]
    logits = [part.logits.cpu() for part in parts if part.logits is not None]
    return Features(torch.cat([part.vectors.cpu() for part in parts]), torch.cat(logits) if logits else None)
