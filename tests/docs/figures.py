"""Rows of small pictures and plots beneath them, by matplotlib, in inches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from diffusion.process import to_uint8

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor

CELL, NAMES, HEADER = 0.68, 1.75, 0.34  # a picture with its margin, the names of the rows, those of the columns
LEGEND = 2.6
PLOT_HEIGHT = 3.1


def strips(rows: Sequence[tuple[str, Tensor | list[Tensor]]], columns: Sequence[str], below: float = 0.0) -> Figure:
    """Named rows of pictures under named columns, and so many inches left free below.

    A row is a batch or a list of batches, of uint8 or of floats: of these, what is beyond [-1, 1] is black or white.
    """
    width, height = NAMES + CELL * len(columns), HEADER + CELL * len(rows) + below
    figure = Figure(figsize=(width, height), facecolor="white")
    margins = {"left": NAMES / width, "right": 1 - 0.05 / width, "top": 1 - HEADER / height, "bottom": below / height}
    grid = figure.add_gridspec(len(rows), len(columns), **margins, wspace=0.06, hspace=0.06)
    for row, (name, batches) in enumerate(rows):
        pictures = torch.cat(batches) if isinstance(batches, list) else batches
        for column, picture in enumerate(pictures if pictures.dtype == torch.uint8 else to_uint8(pictures)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture.squeeze(0).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(columns[column], fontsize=9, pad=4)
            if column == 0:
                axes.text(-0.12, 0.5, name, transform=axes.transAxes, ha="right", va="center")
    return figure


def plots(*names: tuple[str, str], figure: Figure | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with plots side by side, or the foot of one; names are those of each one's x and y."""
    figure = figure or Figure(figsize=(8.5, PLOT_HEIGHT), facecolor="white")
    width, height = figure.get_size_inches()
    left, bottom, gap = 0.85, 0.5, 0.85
    each = (width - left - LEGEND - gap * (len(names) - 1)) / len(names)
    drawn = []
    for place, (x_name, y_name) in enumerate(names):
        box = (left + place * (each + gap), bottom, each, PLOT_HEIGHT - bottom - 0.35)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.append(axes)
    return figure, drawn


def legend_beside(axes: Axes) -> None:
    """The names of the lines, to the right of the plot, where they hide none."""
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def say(text: str) -> None:
    """One line of progress that is written over."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}\x1b[K")
