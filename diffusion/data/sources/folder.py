"""A folder of image files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from ..images import Rejected
from .base import Item, in_blocks, is_image_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...files import Folder

READERS = 16
"""files of a block that are read at once from an object store, where each costs a round trip"""


class FolderSource:
    """The files under a folder. With subfolders, each one directly inside is a class, by sorted name.

    Files and folders whose name begins with a dot are not looked at.
    """

    channels = 3

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        top = [info for info in folder.entries() if not info.base_name.startswith(".")]
        self.classes = [info.base_name for info in top if info.type == fs.FileType.Directory]
        self.others = [info.base_name for info in top if info.type == fs.FileType.File] if self.classes else []
        """files beside the classes, which are not pictures: listed, to be refused on record"""
        loose = [name for name in self.others if is_image_name(name)]
        if loose:
            raise ValueError(
                f"source must have images either in subfolders (its classes) or directly inside, not both: "
                f"{folder.uri} has {len(self.classes)} folders and also {loose[0]}"
            )

    def blocks(self) -> Iterator[list[Item]]:
        """Depth first, each folder sorted: never more than one folder's listing in memory."""
        return in_blocks(self._items())

    def _items(self) -> Iterator[Item]:
        if not self.classes:
            yield from walk(self.folder)
        for name in self.classes:
            yield from walk(self.folder, name, name)
        for name in self.others:
            yield Item(name, None, "", is_image=False)

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """Files one by one from a disk, many at once from an object store."""
        if self.folder.is_local:
            yield from map(self._read, items)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(self._read, items)

    def _read(self, item: Item) -> bytes | Rejected:
        try:
            return self.folder.read(item.source)
        except (FileNotFoundError, PermissionError) as err:  # other faults are the storage's, and may pass
            return Rejected("unreadable", str(err))


def walk(folder: Folder, prefix: str = "", label: str | None = None) -> Iterator[Item]:
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
            yield Item(name, label, f"{info.size}/{info.mtime_ns}", is_image_name(name))


def _loops(folder: Folder, name: str) -> bool:
    """Whether a folder is a link to one that it is in: an input like any other, to be refused on record."""
    if not folder.is_local:
        return False
    path = Path(folder.at(name))
    return path.is_symlink() and path.resolve() in path.parent.resolve().joinpath("x").parents
