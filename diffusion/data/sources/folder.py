"""A folder of image files."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from ..images import MAX_BYTES, Rejected
from .base import NOT_READ, Item, in_blocks, is_image_name
from .kinds import PICTURES, of_one_kind
from .metadata import find_metadata, labelled, without_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...files import Folder

READERS = 16
"""files of a block that are read at once from an object store, where each costs a round trip"""
NOT_THERE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""faults that are the input's; others are the storage's, and may pass"""


class FolderSource:
    """The files under a folder. Files and folders whose name begins with a dot are not looked at.

    Labels come from metadata files (Hugging Face's ImageFolder), if one is in the folder or directly in one of its
    subfolders; else each subfolder directly inside is a class, by sorted name. The folder is looked at when it is
    listed, not when inputs are read: a task that reads a block pays for that block alone.
    """

    channels = 3

    def __init__(self, folder: Folder, label_column: str) -> None:
        self.folder, self.label_column = folder, label_column

    @property
    def classes(self) -> list[str] | None:
        """The subfolders; None with metadata: the labels that it gives.

        Raises ValueError for pictures both in subfolders and beside them.
        """
        return None if self._metadata else self._checked_classes()

    @cached_property
    def _subfolders(self) -> list[str]:
        return [info.base_name for info in self._top() if self._is_subfolder(info)]

    @cached_property
    def _metadata(self) -> dict[str, str]:
        """The metadata file of the folder (its name here is "") or else of each subfolder that has one."""
        return find_metadata(self.folder, [""]) or find_metadata(self.folder, self._subfolders)

    def _top(self) -> Iterator[fs.FileInfo]:
        return (info for info in self.folder.entries() if not info.base_name.startswith("."))

    def _is_subfolder(self, info: fs.FileInfo) -> bool:
        return info.type == fs.FileType.Directory and not _loops(self.folder, info.base_name)

    def blocks(self) -> Iterator[list[Item]]:
        """Depth first, each folder sorted: never more than one folder's names and one metadata file in memory."""
        return in_blocks(of_one_kind(self._items(), PICTURES, self.folder.uri))

    def _items(self) -> Iterator[Item]:
        if "" in self._metadata:
            yield from labelled(self.folder, "", self._metadata[""], self.label_column, walk(self.folder))
        elif self._metadata:
            yield from self._in_subfolders()
        elif not self._checked_classes():
            yield from walk(self.folder)
        else:
            for name in self._subfolders:
                yield from without_metadata(self.folder, walk(self.folder, name, name))
            yield from self._beside()

    def _checked_classes(self) -> list[str]:
        loose = (info.base_name for info in self._top() if info.type == fs.FileType.File)
        if self._subfolders and (found := next(filter(is_image_name, loose), None)):
            raise ValueError(
                f"source must have images either in subfolders (its classes) or directly inside, not both: "
                f"{self.folder.uri} has {len(self._subfolders)} folders and also {found}"
            )
        return self._subfolders

    def _in_subfolders(self) -> Iterator[Item]:
        for name in self._subfolders:
            items = walk(self.folder, name)
            if name in self._metadata:
                yield from labelled(self.folder, name, self._metadata[name], self.label_column, items)
            else:
                yield from without_metadata(self.folder, items)
        yield from self._beside()

    def _beside(self) -> Iterator[Item]:
        return (file_item(info) for info in self._top() if not self._is_subfolder(info))

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """Files one by one from a disk, many at once from an object store."""
        if self.folder.is_local:
            yield from map(self._read, items)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(self._read, items)

    def _read(self, item: Item) -> bytes | Rejected:
        if not item.is_image:
            return NOT_READ
        try:
            if self.folder.is_local:
                return _read_local(self.folder.at(item.source))
            with self.folder.fs.open_input_file(self.folder.at(item.source)) as stream:
                if stream.size() > MAX_BYTES:
                    return Rejected("too_large", f"{stream.size()} bytes are over {MAX_BYTES}")
                data: bytes = stream.read()
        except OSError as err:
            if not isinstance(err, FileNotFoundError | PermissionError) and err.errno not in NOT_THERE:
                raise
            return Rejected("unreadable", str(err))
        return data


def _read_local(path: str) -> bytes | Rejected:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else a pipe would be waited for for ever
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return Rejected("unreadable", "it is no file, or a link to none")
        if found.st_size > MAX_BYTES:
            return Rejected("too_large", f"{found.st_size} bytes are over {MAX_BYTES}")
        with FileIO(descriptor, closefd=False) as stream:
            return stream.readall()
    finally:
        os.close(descriptor)


def walk(folder: Folder, prefix: str = "", label: str | None = None) -> Iterator[Item]:
    """Every file under a folder (or the one called `prefix` in it), depth first, each folder sorted.

    What begins with a dot is passed over.
    """
    for info in folder.entries(prefix):
        if info.base_name.startswith("."):
            continue
        name = f"{prefix}/{info.base_name}" if prefix else info.base_name
        if info.type == fs.FileType.Directory and not _loops(folder, name):
            yield from walk(folder, name, label)
        else:
            yield file_item(info, prefix, label)


def file_item(info: fs.FileInfo, folder: str = "", label: str | None = None) -> Item:
    """A file in a folder of this name."""
    name = f"{folder}/{info.base_name}" if folder else info.base_name
    return Item(name, label, f"{info.size}/{info.mtime_ns}", is_image_name(name))


def _loops(folder: Folder, name: str) -> bool:
    """Whether a folder is a link to one on the way to it: an input like any other, to be refused on record.

    Links on the way count as where they lead, so that two folders that link to each other are each gone into once.
    """
    if not folder.is_local:
        return False
    path = Path(folder.at(name))
    if not path.is_symlink():
        return False
    target, on_the_way = path.resolve(), [parent.resolve() for parent in path.parents]
    return any(target == place or target in place.parents for place in on_the_way)
