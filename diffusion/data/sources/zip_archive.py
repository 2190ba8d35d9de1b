"""Zip archives: what is in one, and one member, which is read without going through the archive's directory again."""

from __future__ import annotations

import struct
import zipfile
import zlib
from operator import attrgetter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ..images import MAX_BYTES, Rejected
from ..tar import Member
from .members import is_called

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC, DESCRIPTOR_MAGIC = b"PK\3\4", b"PK\7\x08"
ENCRYPTED, STREAMED, UTF_8 = 0x1, 0x8, 0x800
"""bits of a member's flags; of a streamed one, checksum and sizes come after the data"""
STORED, DEFLATED = 0, 8
DAMAGED = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError)
"""what zipfile raises of a directory that is damaged, or of a kind that it does not know"""


class Header(NamedTuple):
    """What comes before a member's data (APPNOTE 4.3.7)."""

    magic: bytes
    version: int
    flags: int
    method: int
    time: int
    day: int
    crc: int
    num_packed: int
    num_bytes: int
    num_name: int
    num_extra: int


HEADER = struct.Struct("<4s5H3L2H")
DESCRIPTOR_BYTES = 16


def list_zip(stream: BinaryIO) -> Iterator[Member]:
    """Its files in the order of their data: where the header of each is, and how many bytes it is packed into.

    For one that unpacks to more than MAX_BYTES, it is how many it unpacks to: too many either way. Raises ValueError
    for a damaged archive.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = sorted(archive.infolist(), key=attrgetter("header_offset"))
    except DAMAGED as err:
        raise ValueError(f"it is no whole zip archive ({err})") from None
    for info in infos:
        if not info.filename or not 0 <= info.header_offset <= archive.start_dir - HEADER.size - info.compress_size:
            raise ValueError(f"its directory is damaged: there can be no {info.filename!r} at {info.header_offset}")
        if not info.is_dir():
            is_bomb = info.file_size > MAX_BYTES
            yield Member(info.filename, info.header_offset, info.file_size if is_bomb else info.compress_size)


def read_zip_member(stream: BinaryIO, offset: int, num_packed: int, name: str) -> bytes | Rejected:
    """The data of the member that was listed with this place and name, its checksum found right.

    Rejected if it is no longer there, damaged, encrypted, or packed in another way than zip's own two.
    """
    stream.seek(offset)
    start = stream.read(HEADER.size)
    header = Header(*HEADER.unpack(start)) if len(start) == HEADER.size else None
    if header is None or header.magic != MAGIC:
        return Rejected("unreadable", "the archive has changed since it was listed, or is damaged")
    raw_name = stream.read(header.num_name)
    found = raw_name.decode("utf-8" if header.flags & UTF_8 else "cp437", errors="replace")
    if not is_called(name, found, offset):
        return Rejected("unreadable", f"the archive has changed since it was listed: {found} is here now")
    if header.flags & ENCRYPTED:
        return Rejected("unreadable", "it is encrypted")
    stream.read(header.num_extra)
    packed, after = stream.read(num_packed), stream.read(DESCRIPTOR_BYTES)
    data = _unpacked(packed, header.method)
    if isinstance(data, bytes) and zlib.crc32(data) != _crc(header, after):
        return Rejected("unreadable", "it is damaged: its checksum is wrong")
    return data


def _unpacked(packed: bytes, method: int) -> bytes | Rejected:
    if method == STORED:
        return packed
    if method != DEFLATED:
        return Rejected("unreadable", f"it is compressed by method {method}; only stored and deflated can be read")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(packed, MAX_BYTES + 1)  # whatever the directory said: not a byte more
    except zlib.error as err:
        return Rejected("unreadable", f"it is damaged: {err}")
    return Rejected("too_large", f"it unpacks to over {MAX_BYTES} bytes") if len(data) > MAX_BYTES else data


def _crc(header: Header, after: bytes) -> int:
    if not header.flags & STREAMED:
        return header.crc
    return int.from_bytes(after.removeprefix(DESCRIPTOR_MAGIC)[:4], "little")
