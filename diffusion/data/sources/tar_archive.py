"""Tar archives: what is in one, and one member."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from ..images import Rejected
from ..tar import RECORD, Member, walk_tar
from .members import is_called

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_NAME = 100
"""of a name in its header; a longer one, and one that is not ASCII, may be in a header before it"""


def list_tar(stream: BinaryIO) -> Iterator[Member]:
    """Its files in order; links are among them, to be refused on record. Raises ValueError for a damaged archive."""
    return walk_tar(stream, links=True)


def read_tar_member(stream: BinaryIO, offset: int, num_bytes: int, name: str) -> bytes | Rejected:
    """The data of the member that was listed with this place and name, its header read with it.

    Rejected if it is no longer there.
    """
    stream.seek(offset - RECORD)
    data = stream.read(RECORD + num_bytes)
    try:
        found = next(walk_tar(io.BytesIO(data + bytes(-num_bytes % RECORD)), links=True), None)
    except ValueError:
        found = None
    if len(data) < RECORD + num_bytes or found is None or found.num_bytes != num_bytes:
        return Rejected("unreadable", "the archive has changed since it was listed")
    if name.isascii() and len(name) < LONGEST_NAME and not is_called(name, found.name, offset):
        return Rejected("unreadable", f"the archive has changed since it was listed: {found.name} is here now")
    return data[RECORD:]
