"""A folder at a URI, local or in an object store, whose files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

if TYPE_CHECKING:
    from collections.abc import Iterator

S3_ATTEMPTS = 5
"""of a call to a store that fails or does not answer: given up after 20 s; at pyarrow's own 31, after 100 s"""
LINK_LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)


class Folder:
    """A folder by URI (`s3://…`, `gs://…`) or local path. Names are relative, with "/" between parts.

    It need not exist: writing makes it. Raises ValueError for a URI of an unknown kind.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri) if "://" in str(uri) else str(Path(uri).expanduser().resolve())
        try:
            opened, self.path = fs.FileSystem.from_uri(self.uri)
            self.fs = _soon_given_up(opened)
        except (pa.ArrowInvalid, OSError) as err:
            raise ValueError(f"cannot open {self.uri}: {err}") from err
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> Folder:
        """The folder inside this one."""
        place, question, options = self._place()
        return Folder(f"{place.rstrip('/')}/{name}{question}{options}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return str(self.path.rstrip("/").rpartition("/")[2])

    @property
    def parent(self) -> Folder:
        """The folder that this one (or the file of this name) is in."""
        place, question, options = self._place()
        return Folder(f"{place.rstrip('/').rpartition('/')[0] or '/'}{question}{options}")

    def _place(self) -> tuple[str, str, str]:
        # A URI may end in options (s3://bucket/runs?region=…); in a local path "?" is a letter like any other.
        return self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")

    def at(self, name: str) -> str:
        """The filesystem's own path of a file in here."""
        return f"{self.path.rstrip('/')}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file: on a local disk under a temporary name, synced, then renamed."""
        if not self.is_local:
            with self.fs.open_output_stream(self.at(name)) as stream:
                stream.write(data)
            return
        path = Path(self.at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)  # else a power cut may undo the renaming, and with it what was said to be done
        except OSError as err:  # that the disk is full, the kernel says without saying which
            raise OSError(err.errno, err.strerror, err.filename or str(path)) from None
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        with self.fs.open_input_file(self.at(name)) as stream:
            data: bytes = stream.read()
        return data

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` from `offset`; fewer where the file ends. Raises FileNotFoundError."""
        with self.fs.open_input_file(self.at(name)) as stream:
            data: bytes = stream.read_at(num_bytes, offset)
        return data

    def exists(self, name: str) -> bool:
        """Whether a file (not a folder) of this name is here."""
        return bool(self.fs.get_file_info(self.at(name)).type == fs.FileType.File)

    def entries(self, name: str = "") -> Iterator[fs.FileInfo]:
        """What is directly in here (or in the folder `name`), sorted by name; nothing if it does not exist.

        On a disk only the names are held; each is looked at when its turn comes. Links are followed, and one that
        leads nowhere is of type NotFound. Raises ValueError if a name is not UTF-8, which nothing downstream could
        write down, and OSError where the folder cannot be read.
        """
        path = self.at(name).rstrip("/")
        try:
            if self.is_local:
                yield from _local_entries(path or "/")
            else:
                found = self.fs.get_file_info(fs.FileSelector(path, allow_not_found=True))
                yield from sorted(found, key=lambda info: info.base_name)
        except UnicodeDecodeError as err:
            raise ValueError(f"a file name in {self.uri}/{name} is not UTF-8 ({err.object!r}); rename it") from None

    def names(self, name: str = "") -> list[str]:
        """The base names of `entries`."""
        return [info.base_name for info in self.entries(name)]

    def files(self, name: str = "") -> list[fs.FileInfo]:
        """All files in here (or in the folder `name`) at any depth, with their sizes and times, by one listing.

        Nothing if it does not exist.
        """
        selector = fs.FileSelector(self.at(name).rstrip("/"), recursive=True, allow_not_found=True)
        return [info for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File]

    def download(self, destination: Path) -> None:
        """Copy all files in here, at any depth, into a local folder."""
        destination.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self.path, str(destination), source_filesystem=self.fs)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; no error if it is not there."""
        kind = self.fs.get_file_info(self.at(name)).type
        if kind == fs.FileType.Directory:
            self.fs.delete_dir(self.at(name))
        elif kind == fs.FileType.File:
            self.fs.delete_file(self.at(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as readable JSON with sorted keys."""
        self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError, or ValueError where the file is not JSON."""
        return json.loads(self.read(name))

    def write_table(self, name: str, table: pa.Table) -> str:
        """Write a Parquet file; the sha256 of its bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        self.write(name, data)
        return hashlib.sha256(data).hexdigest()

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file, or some columns of it."""
        return pq.read_table(self.at(name), columns=columns, filesystem=self.fs)


def _soon_given_up(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same, but for how often an S3 call is made: a URI has no word for that."""
    if not isinstance(filesystem, fs.S3FileSystem):
        return filesystem
    _, (options,) = filesystem.__reduce__()  # what it is pickled as
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS))


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _local_entries(path: str) -> Iterator[fs.FileInfo]:
    """What is in a local folder. Raises UnicodeDecodeError for a name that is not UTF-8."""
    try:
        # bytes: a third smaller than str, and sorted as str would be
        names = os.listdir(os.fsencode(path))  # noqa: PTH208  # Path knows no bytes
    except FileNotFoundError:
        return
    names.sort()
    for raw in names:
        yield _local_entry(f"{path.rstrip('/')}/{raw.decode()}")


def _local_entry(path: str) -> fs.FileInfo:
    try:
        found = os.stat(path)  # noqa: PTH116  # a Path for each of a million files takes longer than its stat
    except OSError as err:
        # a link may lead where nothing is or nobody may go; a file may just have gone: others are the disk's faults
        if err.errno != errno.ENOENT and not (err.errno in LINK_LEADS_NOWHERE and os.path.islink(path)):  # noqa: PTH114
            raise
        return fs.FileInfo(path, fs.FileType.NotFound)
    if stat.S_ISDIR(found.st_mode):
        return fs.FileInfo(path, fs.FileType.Directory, mtime_ns=found.st_mtime_ns)
    kind = fs.FileType.File if stat.S_ISREG(found.st_mode) else fs.FileType.Unknown
    return fs.FileInfo(path, kind, mtime_ns=found.st_mtime_ns, size=found.st_size)
