"""Many pictures as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray
    from torch import Tensor

PADDING = 2
WHITE = 255


def image_grid(images: UInt8[Tensor, "n c h w"], num_columns: int, width: int = 0) -> UInt8[ndarray, "h w c"]:
    """The pictures row by row on white, 2 pixels apart.

    Enlarged without smoothing, as many times as `width` pixels have room for, the gaps not counted.
    """
    scale = max(1, width // (num_columns * images.shape[-1]))
    cells = F.pad(images, (PADDING, 0, PADDING, 0), value=WHITE)
    missing = -len(cells) % num_columns
    cells = torch.cat([cells, cells.new_full((missing, *cells.shape[1:]), WHITE)])
    _, c, h, w = cells.shape
    grid = cells.view(-1, num_columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(-1, num_columns * w, c)
    framed = F.pad(grid, (0, 0, 0, PADDING, 0, PADDING), value=WHITE)
    large: UInt8[ndarray, "h w c"] = framed.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
    return large
