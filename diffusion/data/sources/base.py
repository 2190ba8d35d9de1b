"""What a source of images is: it lists its inputs in blocks, in a fixed order, and reads a block at once."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..images import SUFFIXES, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BLOCK_ITEMS = 64
"""inputs in a block of what has no row groups"""


class Item(NamedTuple):
    """One input."""

    source: str
    """its name, of which the source has only one"""
    label: str | None
    """the name of its class"""
    stamp: str
    """what changes when its content may have"""
    is_image: bool = True
    """whether it claims to be a picture, by its name or where it is"""
    at: tuple[int, int] = (0, 0)
    """where it is in its file, as the source understands it"""


class Source(Protocol):
    """Anything that lists images in a fixed order and reads them block by block."""

    channels: int
    """1 or 3: what its pictures are when the user does not say"""

    @property
    def classes(self) -> list[str] | None:
        """Names by label; empty when there are no labels, None when they are those that the listing will show."""

    def blocks(self) -> Iterator[list[Item]]:
        """Every input once, in an order that depends on the source alone, cut where it is read at once."""

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """The file of each input of one block, in their order, or why it cannot be had.

        Raises OSError where the storage fails, so that another attempt may have them.
        """


def in_blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of BLOCK_ITEMS, the last one shorter."""
    rest = iter(items)
    while block := list(islice(rest, BLOCK_ITEMS)):
        yield block


def is_image_name(name: str) -> bool:
    """Whether a file claims to be a picture, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels: whole numbers by value (0 … 10, not 0, 1, 10), else by letters."""
    found = set(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)
