"""A folder of one kind of thing: pictures, Parquet tables or archives."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from .archives import ArchiveSource
from .base import NOT_READ, WHOLE_FILE
from .folder import FolderSource, walk
from .kinds import ARCHIVES, PICTURES, TABLES, kind_of
from .parquet import ParquetSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...files import Folder
    from ..images import Rejected
    from .base import Item, Source

ROW = re.compile(r"\.parquet/\d+$", re.IGNORECASE)
"""how the name of a row ends; that of no other picture does"""


class AnyFolder:
    """A folder's first file that is a picture, a table or an archive says what all of it holds; another is refused.

    The folder is looked at when it is listed. To read, the inputs themselves say what they are in: listing a folder
    again in each of the tasks that read it would take longer than reading.
    """

    channels = 3

    def __init__(self, folder: Folder, image_column: str, label_column: str) -> None:
        def files() -> Iterator[Item]:
            return walk(folder)

        self.files = files
        self.kinds: dict[str, Source] = {
            PICTURES: FolderSource(folder, label_column),
            TABLES: ParquetSource(folder, files, image_column, label_column),
            ARCHIVES: ArchiveSource(folder, files),
        }

    @cached_property
    def _source(self) -> Source:
        kinds = filter(None, (kind_of(file.source) for file in self.files()))
        return self.kinds[next(kinds, PICTURES)]

    @property
    def classes(self) -> list[str] | None:
        """As the kind has them."""
        return self._source.classes

    def blocks(self) -> Iterator[list[Item]]:
        """As the kind has them. Raises ValueError if the folder holds two kinds."""
        return self._source.blocks()

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """A block is of files, of the rows of one table, or of the members of one archive."""
        image = next((item for item in items if item.is_image), None)
        if image is None:
            return iter([NOT_READ] * len(items))
        if image.at == WHOLE_FILE:
            return self.kinds[PICTURES].read(items)
        return self.kinds[TABLES if ROW.search(image.source) else ARCHIVES].read(items)
