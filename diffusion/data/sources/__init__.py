"""Where images come from: folders, tar and zip archives, Parquet tables, or the digits that scikit-learn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow import fs

from ...files import Folder
from ..images import SUFFIXES
from .any_folder import AnyFolder
from .archives import ArchiveSource
from .base import (
    BLOCK_ITEMS,
    IMAGE_COLUMN,
    LABEL_COLUMN,
    Item,
    Source,
    in_blocks,
    is_image_name,
    label_name,
    sorted_classes,
)
from .digits import DIGITS, DigitsSource
from .folder import file_item, walk
from .kinds import ARCHIVES, TABLES, kind_of
from .parquet import ParquetSource
from .several import SeveralSources

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BLOCK_ITEMS",
    "IMAGE_COLUMN",
    "LABEL_COLUMN",
    "DigitsSource",
    "Item",
    "Source",
    "check_source",
    "in_blocks",
    "is_image_name",
    "label_name",
    "open_source",
    "sorted_classes",
    "walk",
]


def open_source(uris: Sequence[str], image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN) -> Source:
    """The images at these URIs or paths.

    Each is `digits`, a Parquet table, a tar or zip archive, or a folder of pictures, of tables or of archives. The
    columns are those of tables; `label_column` is that of metadata files too, and "" means no labels. Raises
    ValueError if there is no such thing.
    """
    sources = [_open(uri, image_column, label_column) for uri in uris]
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def check_source(uris: Sequence[str], image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN) -> None:
    """Raises ValueError if there is no such source, or no image in one: looks no further than the first one."""
    for uri in uris:
        if not any(item.is_image for block in _open(uri, image_column, label_column).blocks() for item in block):
            raise ValueError(f"source must have at least one image ({', '.join(SUFFIXES)}); there is none in {uri}")


def _open(uri: str, image_column: str, label_column: str) -> Source:
    if uri == DIGITS:
        return DigitsSource()
    folder = Folder(uri)
    info = folder.fs.get_file_info(folder.path)
    if info.type == fs.FileType.Directory:
        return AnyFolder(folder, image_column, label_column)
    kind = kind_of(folder.name) if info.type == fs.FileType.File else None
    if kind == TABLES:
        return ParquetSource(folder.parent, lambda: [file_item(info)], image_column, label_column)
    if kind == ARCHIVES:
        return ArchiveSource(folder.parent, lambda: [file_item(info)])
    raise ValueError(
        f"source must be {DIGITS!r}, a folder, a .parquet table, or a .tar or .zip archive; "
        f"there is none of these at {folder.uri}"
    )
