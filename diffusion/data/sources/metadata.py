"""Labels from `metadata.csv` or `metadata.jsonl`, as Hugging Face's ImageFolder lays them beside the pictures."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from .base import Item, is_image_name, label_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...files import Folder

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def is_metadata_name(name: str) -> bool:
    """Whether this is a metadata file."""
    return posixpath.basename(name) in NAMES


def find_metadata(folder: Folder, prefixes: Sequence[str]) -> dict[str, str]:
    """The metadata file in each of these folders that has one. Raises ValueError if one has two."""
    places = [(prefix, posixpath.join(prefix, name)) for prefix in prefixes for name in NAMES]
    infos = folder.fs.get_file_info([folder.at(name) for _, name in places])
    found: dict[str, str] = {}
    for (prefix, name), info in zip(places, infos, strict=True):
        if info.type == fs.FileType.File:
            if prefix in found:
                raise ValueError(f"{folder.uri} has both {found[prefix]} and {name}; keep one")
            found[prefix] = name
    return found


def labelled(folder: Folder, prefix: str, metadata: str, column: str, items: Iterator[Item]) -> Iterator[Item]:
    """The items under `prefix` with the labels of its metadata file, which is left out, then those that only it names.

    Raises ValueError for a file that cannot be understood, or a second one further down.
    """
    labels = read_metadata(folder, metadata, column)
    for item in items:
        if item.source == metadata:
            continue
        if is_metadata_name(item.source):
            raise ValueError(f"{folder.uri} has {item.source} under {metadata}; keep one for the same files")
        yield item._replace(label=labels.pop(posixpath.relpath(item.source, prefix or "."), None))
    for name in sorted(labels):  # hidden, or not there: the latter to be refused on record
        source = posixpath.join(prefix, name)
        info = folder.fs.get_file_info(folder.at(source))
        yield Item(source, labels[name], f"{info.size}/{info.mtime_ns}", is_image_name(source))


def without_metadata(folder: Folder, items: Iterator[Item]) -> Iterator[Item]:
    """The same items. Raises ValueError at a metadata file: one so deep inside would be of no effect."""
    for item in items:
        if is_metadata_name(item.source):
            raise ValueError(
                f"metadata must be in the source's folder or directly in one of its subfolders, but {folder.uri} has "
                f"{item.source}; move it up, with each {FILE_COLUMN} as seen from there, or away"
            )
        yield item


def read_metadata(folder: Folder, name: str, column: str) -> dict[str, str | None]:
    """Labels by path from the metadata's folder; none with column "". Raises ValueError, naming file and line."""
    labels: dict[str, str | None] = {}
    kept: dict[str | None, str | None] = {}  # one object a class, not one a picture
    try:
        text = folder.read(name).decode("utf-8-sig")
        for line, row in _rows(text, name):
            file = _file(row, line)
            label = _label(row, column, line)
            if labels.setdefault(file, kept.setdefault(label, label)) != label:
                raise ValueError(f"line {line}: {file} has two labels, {labels[file]} and {label}; keep one")
    except (ValueError, csv.Error) as err:
        raise ValueError(f"cannot use {folder.uri}/{name}: {err}") from None
    return labels


def _rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if name.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if not reader.fieldnames:
            raise ValueError(f"it must begin with a line of column names, {FILE_COLUMN} among them")
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            yield number, _object(line, number)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as err:
        raise ValueError(f"line {number} is not JSON: {err}") from None
    if not isinstance(row, dict):
        raise ValueError(f'line {number}: must be an object like {{"{FILE_COLUMN}": …}}, got {line.strip()[:80]}')
    return row


def _file(row: dict[str, Any], line: int) -> str:
    """The path in a row, which must not lead out of the metadata's folder."""
    if FILE_COLUMN not in row:
        raise ValueError(f"line {line}: there must be a column {FILE_COLUMN}; there are {_names(row)}")
    value = row[FILE_COLUMN]
    file = posixpath.normpath(value) if isinstance(value, str) and value and "\0" not in value else "."
    if file == "." or file.startswith(("/", "../")) or file == "..":
        raise ValueError(f"line {line}: {FILE_COLUMN} must be a path inside its folder, got {value!r}")
    return file


def _label(row: dict[str, Any], column: str, line: int) -> str | None:
    if not column:
        return None
    if column not in row:
        raise ValueError(
            f"line {line}: there is no column {column!r}, but {_names(row)}; give the one with the labels as "
            f'label_column, or "" for no labels'
        )
    try:
        return label_name(row[column])
    except ValueError as err:
        raise ValueError(f"line {line}: {err}") from None


def _names(row: dict[str, Any]) -> str:
    return ", ".join(str(name) for name in row if name is not None)
