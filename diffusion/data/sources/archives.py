"""Tar and zip archives of image files, WebDataset's among them."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, BinaryIO, cast

from ..images import MAX_BYTES, Rejected
from ..tar import LABEL, split_key
from .base import NOT_READ, Item, in_blocks, is_image_name, label_name
from .kinds import ARCHIVES, COMPRESSED, blocks_inside
from .members import UniqueNames, is_hidden, top_folder
from .tar_archive import list_tar, read_tar_member
from .zip_archive import list_zip, read_zip_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ...files import Folder
    from ..tar import Member

LISTERS = {".tar": list_tar, ".zip": list_zip}
READERS = {".tar": read_tar_member, ".zip": read_zip_member}
ARCHIVE_END = re.compile(r"\.(?:tar|zip)(?=/)", re.IGNORECASE)
MAX_LABEL_BYTES = 1024
LISTING_BYTES = 1 << 20
"""read at once while listing: over small pictures it reads on, over large ones it leaps"""
SPAN_BYTES = 64 << 20
"""members that lie within this, and fill half of it or more, are read at once"""
MARGIN_BYTES = 4096
"""for what is around a member's data"""


class ArchiveSource:
    """The files in tar and zip archives: ARCHIVE.tar/its/own/name, with #offset behind a name that was there before.

    Its label is what its WebDataset sibling KEY.cls says, a whole number or text; without one, the first folder of
    its name; without folders, none. Hidden names and macOS's `__MACOSX` are passed over, as in folders.
    """

    channels = 3
    classes = None

    def __init__(self, folder: Folder, files: Callable[[], Iterable[Item]]) -> None:
        self.folder, self.files = folder, files

    def blocks(self) -> Iterator[list[Item]]:
        """Archive by archive, in the order of the data. Raises ValueError for a damaged or a compressed one."""
        return blocks_inside(self.files(), ARCHIVES, self.folder.uri, lambda archive: in_blocks(self._members(archive)))

    def _members(self, archive: Item) -> Iterator[Item]:
        path = self.folder.at(archive.source)
        if archive.source.lower().endswith(COMPRESSED):
            raise ValueError(f"archives must be plain tar or zip, whose members can be read one by one; unpack {path}")
        names = UniqueNames()
        try:
            with self._opened(archive.source, LISTING_BYTES) as stream:
                for member, label in labelled_members(stream, _suffix(archive.source)):
                    name, place = f"{archive.source}/{names.of(member)}", (member.offset, member.num_bytes)
                    yield Item(name, label, archive.stamp, is_image_name(member.name), place)
        except (ValueError, FileNotFoundError, PermissionError) as err:
            raise ValueError(f"cannot read {path}: {err}; make or download it again") from None

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """At once where they are near each other, else member by member."""
        contents = self._contents([item for item in items if _refused(item) is None])
        for item in items:
            yield _refused(item) or next(contents)

    def _contents(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        if not items:
            return
        archive = self._archive_of(items[0].source)
        read_member = READERS[_suffix(archive)]
        try:
            with self._opened(archive, _bytes_at_once(items)) as stream:
                for item in items:
                    yield read_member(stream, *item.at, item.source.removeprefix(f"{archive}/"))
        except (FileNotFoundError, PermissionError) as err:
            yield from repeat(Rejected("unreadable", str(err)))

    def _archive_of(self, name: str) -> str:
        """The part of a name that is a file: folders and members may be called x.tar too."""
        parts = [name[: found.end()] for found in ARCHIVE_END.finditer(name)]
        return next((part for part in parts[:-1] if self.folder.exists(part)), parts[-1])

    @contextmanager
    def _opened(self, archive: str, bytes_at_once: int) -> Iterator[BinaryIO]:
        with (
            self.folder.fs.open_input_file(self.folder.at(archive)) as raw,
            _Stream(cast("io.RawIOBase", raw), bytes_at_once) as stream,
        ):
            yield stream


class _Stream(io.BufferedReader):
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError as err:  # Arrow's; of a short file, zipfile tries places before its beginning
            raise OSError(str(err)) from None


def labelled_members(stream: BinaryIO, suffix: str) -> Iterator[tuple[Member, str | None]]:
    """The members of an archive that are not labels, with their labels.

    Raises ValueError for a damaged archive, and for a label that is none or has no other member of its key beside
    it: in an archive that is not sorted, labels would be lost.
    """
    for sample in _samples(member for member in LISTERS[suffix](stream) if not is_hidden(member.name)):
        others = [member for extension, member in sample if extension != LABEL]
        said = next((member for extension, member in sample if extension == LABEL), None)
        if said is None:
            yield from ((member, top_folder(member.name)) for member in others)
            continue
        if not others:
            raise ValueError(f"the label {said.name} has no member of its key beside it; sort the archive by name")
        label = _label(stream, suffix, said)
        yield from ((member, label) for member in others)


def _samples(members: Iterable[Member]) -> Iterator[list[tuple[str, Member]]]:
    """Members of one key that follow each other, with their extensions; one that is there again begins the next."""
    sample: dict[str, Member] = {}
    current = None
    for member in members:
        key, extension = split_key(member.name)
        if sample and (key != current or extension in sample):
            yield list(sample.items())
            sample = {}
        current, sample[extension] = key, member
    if sample:
        yield list(sample.items())


def _label(stream: BinaryIO, suffix: str, member: Member) -> str | None:
    if member.num_bytes > MAX_LABEL_BYTES:
        raise ValueError(f"the label {member.name} must have at most {MAX_LABEL_BYTES} bytes, got {member.num_bytes}")
    data = READERS[suffix](stream, member.offset, member.num_bytes, member.name)
    if isinstance(data, Rejected):
        raise ValueError(f"the label {member.name} cannot be read: {data.detail}")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"the label {member.name} must be text or a whole number, got {data[:80]!r}") from None
    return label_name(int(text) if text.isascii() and text.lstrip("-").isdigit() else text)


def _refused(item: Item) -> Rejected | None:
    """Why an input is not even read."""
    if not item.is_image:
        return NOT_READ
    return Rejected("too_large", f"{item.at[1]} bytes are over {MAX_BYTES}") if item.at[1] > MAX_BYTES else None


def _bytes_at_once(items: Sequence[Item]) -> int:
    span = max(sum(item.at) for item in items) - min(item.at[0] for item in items)
    is_near = span <= SPAN_BYTES and 2 * sum(item.at[1] + MARGIN_BYTES for item in items) >= span
    return span + 2 * MARGIN_BYTES if is_near else MARGIN_BYTES


def _suffix(archive: str) -> str:
    return archive[-len(".tar") :].lower()
