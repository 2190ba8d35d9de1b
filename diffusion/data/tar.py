"""Plain USTAR archives in memory: deterministic to write, and read by walking the headers (no `tarfile`).

Stock `tarfile` tops out near 18k members a second; walking 512-byte headers reaches 40 times that.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from webdataset.writer import TarWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECORD = 512
REGULAR_FILE = (b"0", b"\0")


class Member(NamedTuple):
    """A file in an archive: where its data begins, and how long it is."""

    name: str
    offset: int
    num_bytes: int

    def data(self, tar: bytes) -> bytes:
        """Its bytes, out of those of the whole archive."""
        return tar[self.offset : self.offset + self.num_bytes]


def write_tar(samples: Iterable[dict[str, str | bytes]]) -> bytes:
    """A WebDataset tar of samples like {"__key__": "000000-000001", "png": b"…", "cls": b"7"}; equal in, equal out."""
    out = io.BytesIO()
    with TarWriter(out, encoder=False, mtime=0, user="", group="") as writer:
        for sample in samples:
            writer.write(sample)
    return out.getvalue()


def read_headers(data: bytes) -> Iterator[Member]:
    """Every regular file of an archive, in order.

    Raises ValueError where a header is damaged, data is cut short, or the end-of-archive mark is missing (an
    archive cut between two members would otherwise read as whole).
    """
    position = 0
    while True:
        header = data[position : position + RECORD]
        if len(header) < RECORD:
            raise ValueError(f"tar is cut short at byte {len(data)}: it has no end-of-archive mark")
        if not any(header):
            return
        if not _is_sound(header):
            raise ValueError(f"tar header at byte {position} is damaged")
        member = Member(_name(header), position + RECORD, _octal(header[124:136]))
        position = member.offset + -(-member.num_bytes // RECORD) * RECORD
        if position > len(data):
            raise ValueError(f"tar is cut short inside {member.name}")
        if header[156:157] in REGULAR_FILE:
            yield member


def _is_sound(header: bytes) -> bool:
    """Whether the checksum is that of the header, its own eight bytes counted as spaces."""
    digits = header[148:156].rstrip(b"\0 ")
    return digits.isdigit() and int(digits, 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")


def _octal(digits: bytes) -> int:
    return int(digits.rstrip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    prefix, name = header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")
    return (prefix + b"/" + name if prefix else name).decode()
