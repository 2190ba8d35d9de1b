"""Where images come from: a folder (subfolders are classes), or the digits that scikit-learn ships."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from pyarrow import fs

from ..files import Folder
from .images import SUFFIXES, encode_png

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGITS = "digits"


class Item(NamedTuple):
    """One input: its name within the source, its label (-1: none) and what changes when its content may have."""

    source: str
    label: int
    stamp: str


class Source(Protocol):
    """Anything that lists its images in a fixed order and reads one by name."""

    classes: list[str]
    """names by label; empty when there are no labels"""
    channels: int
    """1 or 3: what its pictures are when the user does not say"""

    def items(self) -> Iterator[Item]:
        """Every input once, in an order that depends on the source alone."""

    def read(self, name: str) -> bytes:
        """The bytes of an image file."""


def open_source(uri: str) -> Source:
    """`digits`, or a folder by path or URI. Raises ValueError if there is no such folder."""
    return DigitsSource() if uri == DIGITS else FolderSource(uri)


def check_source(uri: str) -> None:
    """Raises ValueError if there is no such source, or no image in it: looks no further than the first one."""
    if not any(is_image_name(item.source) for item in open_source(uri).items()):
        raise ValueError(f"source must have at least one image ({', '.join(SUFFIXES)}); there is none in {uri}")


def is_image_name(name: str) -> bool:
    """Whether a file claims to be a picture, by its suffix."""
    return name.lower().endswith(SUFFIXES)


class FolderSource:
    """The files under a folder. With subfolders, each one directly inside is a class, by sorted name.

    Files and folders whose name begins with a dot are not looked at.
    """

    channels = 3

    def __init__(self, uri: str) -> None:
        self.folder = Folder(uri)
        if self.folder.fs.get_file_info(self.folder.path).type != fs.FileType.Directory:
            raise ValueError(f"source must be a folder of images, or {DIGITS!r}; there is no folder {self.folder.uri}")
        top = [info for info in self.folder.entries() if not info.base_name.startswith(".")]
        self.classes = [info.base_name for info in top if info.type == fs.FileType.Directory]
        self.others = [info.base_name for info in top if info.type == fs.FileType.File] if self.classes else []
        """files beside the classes, which are not pictures: listed, to be refused on record"""
        loose = [name for name in self.others if is_image_name(name)]
        if loose:
            raise ValueError(
                f"source must have images either in subfolders (its classes) or directly inside, not both: "
                f"{self.folder.uri} has {len(self.classes)} folders and also {loose[0]}"
            )

    def items(self) -> Iterator[Item]:
        """Depth first, each folder sorted: never more than one folder's listing in memory."""
        if not self.classes:
            yield from walk(self.folder)
        for label, name in enumerate(self.classes):
            yield from walk(self.folder, name, label)
        for name in self.others:
            yield Item(name, -1, "")

    def read(self, name: str) -> bytes:
        """Raises OSError if it cannot be read."""
        return self.folder.read(name)


def walk(folder: Folder, prefix: str = "", label: int = -1) -> Iterator[Item]:
    """Every file under a folder (or the one called `prefix` in it), depth first, each folder sorted.

    What begins with a dot is passed over.
    """
    for info in folder.entries(prefix):
        name = f"{prefix}/{info.base_name}" if prefix else info.base_name
        if info.base_name.startswith("."):
            continue
        if info.type == fs.FileType.Directory and not _loops(folder, name):
            yield from walk(folder, name, label)
        else:
            yield Item(name, label, f"{info.size}/{info.mtime_ns}")


def _loops(folder: Folder, name: str) -> bool:
    """Whether a folder is a link to one that it is in: an input like any other, to be refused on record."""
    if not folder.is_local:
        return False
    path = Path(folder.at(name))
    return path.is_symlink() and path.resolve() in path.parent.resolve().joinpath("x").parents


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

    def items(self) -> Iterator[Item]:
        """In scikit-learn's order."""
        for index, label in enumerate(self._data[1]):
            yield Item(f"{DIGITS}/{index:04d}.png", int(label), "1")

    def read(self, name: str) -> bytes:
        """The digit as a PNG of 8x8 pixels."""
        index = int(name.removeprefix(f"{DIGITS}/").removesuffix(".png"))
        return encode_png(self._data[0][index][:, :, None])
