"""Pictures of how pictures come to be: the way back from noise, the way there, as strips and as an animation."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from PIL import Image

from .grid import image_grid
from .process import q_sample, to_uint8, to_unit_range
from .seeding import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import UInt8
    from numpy import ndarray
    from torch import Tensor

    from .process import Diffusion

COLUMNS = 11
FRAMES = 40
SECONDS, LAST_SECONDS = 3.0, 2.0


def evenly(num: int, at_most: int) -> list[int]:
    """Indices of 0 … num-1, the first and the last among them, about equally far apart."""
    return torch.linspace(0, num - 1, min(at_most, num)).round().long().tolist()


def strip(states: Sequence[UInt8[Tensor, "n c h w"]], width: int = 0) -> UInt8[ndarray, "h w c"]:
    """A row a picture, from its first state to its last, in at most eleven columns: see `image_grid`."""
    shown = [states[i] for i in evenly(len(states), COLUMNS)]
    return image_grid(torch.stack(shown, dim=1).flatten(0, 1), len(shown), width)


def animation(states: Sequence[UInt8[Tensor, "n c h w"]], num_columns: int, width: int = 0) -> bytes:
    """An endless GIF of the pictures as a grid, from their first state to their last, which stays a while.

    GIF, of all formats, because MLflow's pages show it; of colours it keeps 256 a frame.
    """
    grids = [image_grid(states[i], num_columns, width) for i in evenly(len(states), FRAMES)]
    frames = [Image.fromarray(grid.squeeze(2) if grid.shape[2] == 1 else grid) for grid in grids]
    milliseconds = [int(1000 * SECONDS / len(frames))] * (len(frames) - 1) + [int(1000 * LAST_SECONDS)]
    out = io.BytesIO()
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return out.getvalue()


def forward_states(diffusion: Diffusion, images: UInt8[Tensor, "n c h w"]) -> list[UInt8[Tensor, "n c h w"]]:
    """The pictures, and x_t at about ten timesteps up to the last, in closed form with one noise a picture.

    q(x_t | x_0) (Ho et al. 2020, eq. 4): what is learnt to be undone.
    """
    x0 = to_unit_range(images)
    draws = [generator(i, "forward").standard_normal(x0.shape[1:], dtype="float32") for i in range(len(x0))]
    eps = torch.stack([torch.from_numpy(draw) for draw in draws])
    times = [torch.full((len(x0),), t) for t in evenly(diffusion.num_timesteps, COLUMNS - 1)]
    return [images, *(to_uint8(q_sample(diffusion.alpha_bar(t), x0, eps)) for t in times)]
