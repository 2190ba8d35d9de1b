"""Where images come from: folders, tar and zip archives, Parquet tables, or the digits that scikit-learn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow import fs

from ...files import Folder
from ..images import SUFFIXES
from .base import BLOCK_ITEMS, Item, Source, in_blocks, is_image_name, sorted_classes
from .digits import DIGITS, DigitsSource
from .folder import FolderSource, walk
from .several import SeveralSources

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BLOCK_ITEMS",
    "DigitsSource",
    "Item",
    "Source",
    "check_source",
    "in_blocks",
    "is_image_name",
    "open_source",
    "sorted_classes",
    "walk",
]


def open_source(uris: Sequence[str]) -> Source:
    """The images at these URIs or paths; each is `digits` or a folder. Raises ValueError if there is no such thing."""
    sources = [_open(uri) for uri in uris]
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def check_source(uris: Sequence[str]) -> None:
    """Raises ValueError if there is no such source, or no image in one: looks no further than the first one."""
    for uri in uris:
        if not any(item.is_image for block in _open(uri).blocks() for item in block):
            raise ValueError(f"source must have at least one image ({', '.join(SUFFIXES)}); there is none in {uri}")


def _open(uri: str) -> Source:
    if uri == DIGITS:
        return DigitsSource()
    folder = Folder(uri)
    if folder.fs.get_file_info(folder.path).type != fs.FileType.Directory:
        raise ValueError(f"source must be a folder of images, or {DIGITS!r}; there is no folder {folder.uri}")
    return FolderSource(folder)
