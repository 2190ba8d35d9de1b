"""What a file holds, by its name: pictures, tables and archives are told apart before anything is opened."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from .base import in_blocks, is_image_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .base import Item

PICTURES, TABLES, ARCHIVES = "pictures", "Parquet tables", "tar or zip archives"
TABLE_SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zst")


def kind_of(name: str) -> str | None:
    """What the file of this name holds, or None: nothing that a source is made of."""
    name = name.lower()
    if is_image_name(name):
        return PICTURES
    if name.endswith(TABLE_SUFFIX):
        return TABLES
    return ARCHIVES if name.endswith((*ARCHIVE_SUFFIXES, *COMPRESSED)) else None


def of_one_kind(items: Iterable[Item], kind: str, place: str) -> Iterator[Item]:
    """The same items.

    Raises ValueError at a file of another kind: to record a whole archive beside pictures as one file that is no
    picture would lose what is in it.
    """
    for item in items:
        found = kind_of(item.source)
        if found not in (kind, None):
            raise ValueError(
                f"source must hold one kind of thing, but {place} holds {kind} and also {found} ({item.source}); "
                f"give them as two sources, or move one away"
            )
        yield item


def blocks_inside(
    files: Iterable[Item], kind: str, place: str, inside: Callable[[Item], Iterator[list[Item]]]
) -> Iterator[list[Item]]:
    """The blocks inside each file of a kind, and between them the files that are of none, to be refused on record.

    Raises ValueError, as `of_one_kind`.
    """
    for of_no_kind, group in groupby(of_one_kind(files, kind, place), lambda file: kind_of(file.source) is None):
        if of_no_kind:
            yield from in_blocks(group)
        else:
            for file in group:
                yield from inside(file)
