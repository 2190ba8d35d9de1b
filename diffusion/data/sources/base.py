"""What a source of images is: it lists its inputs in blocks, in a fixed order, and reads a block at once."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..images import SUFFIXES, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BLOCK_ITEMS = 64
"""inputs in a block of what has no row groups"""
IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
"""of tables and metadata files, where the user names no other"""
WHOLE_FILE = (0, -1)
"""the place of an input that is a file by itself"""
NOT_READ = Rejected("not_an_image_name", "its suffix is not that of an image")
"""what a source yields for an input that does not claim to be a picture: it may be of any size, and is not opened"""
NO_LABEL = "-1"
"""how others, and our manifests, write that an input has no label"""


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
    at: tuple[int, int] = WHOLE_FILE
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
        """The file of each of a block's inputs (or of some, in the block's order), or why it cannot be had.

        What changed since it was listed is read as it now is, or refused: never one input for another. Raises
        OSError where the storage fails, so that another attempt may have them.
        """


def in_blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of BLOCK_ITEMS, the last one shorter."""
    rest = iter(items)
    while block := list(islice(rest, BLOCK_ITEMS)):
        yield block


def is_image_name(name: str) -> bool:
    """Whether a file claims to be a picture, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def label_name(value: object) -> str | None:
    """The class that a table or a file gives: text as it is, whole numbers in digits; None, "" and -1 are no label.

    Raises ValueError for anything else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, str):
        name = "" if value is None else str(value)
        return None if name in ("", NO_LABEL) else name
    raise ValueError(f"a label must be text or a whole number, got {value!r}")


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels: whole numbers by value (0 … 10, not 0, 1, 10), else by letters."""
    found = set(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)
