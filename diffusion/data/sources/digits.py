"""The digits that scikit-learn ships."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..images import encode_png
from .base import Item, in_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIGITS = "digits"


class DigitsSource:
    """The 1,797 handwritten digits (8x8, 17 grey levels, 10 classes) of UCI's optdigits, as scikit-learn ships them."""

    channels = 1

    def __init__(self) -> None:
        self.classes = [str(digit) for digit in range(10)]

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # half a second to import: not for those who bring their own images

        digits = load_digits()
        return (digits.images / 16 * 255).round().astype(np.uint8), digits.target

    def blocks(self) -> Iterator[list[Item]]:
        """In scikit-learn's order."""
        labels = enumerate(self._data[1])
        return in_blocks(Item(f"{DIGITS}/{i:04d}.png", str(label), "1", at=(i, 1)) for i, label in labels)

    def read(self, items: Sequence[Item]) -> Iterator[bytes]:
        """Each digit as a PNG of 8x8 pixels."""
        for item in items:
            yield encode_png(self._data[0][item.at[0]][:, :, None])
