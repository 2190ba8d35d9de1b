"""Parquet tables with a column of image files, such as Hugging Face's `datasets` writes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..images import MAX_BYTES, Rejected
from .base import LABEL_COLUMN, Item, label_name
from .kinds import TABLES, blocks_inside, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ...files import Folder

MAGIC = b"PAR1"
BATCH_ROWS = 64
STEP_BYTES = 8 << 20
CHANGED = Rejected("unreadable", "the table has changed since it was listed")


class ParquetSource:
    """The rows of Parquet tables; a block is a row group.

    The image column holds files as binary, or as Hugging Face's struct of `bytes` and `path`. Labels are whole
    numbers or text, if there are any; with Hugging Face's ClassLabel, the classes are those that the tables declare.
    Rows are called FILE.parquet/000123. Listing reads no image.
    """

    channels = 3

    def __init__(
        self, folder: Folder, files: Callable[[], Iterable[Item]], image_column: str, label_column: str
    ) -> None:
        self.folder, self.files = folder, files
        self.image_column, self.label_column = image_column, label_column

    @cached_property
    def classes(self) -> list[str] | None:
        """The names that the first table declares; None: those that the listing will show."""
        tables = (file.source for file in self.files() if kind_of(file.source) == TABLES)
        if (first := next(tables, None)) is None:
            return None
        with self._opened(first) as table:
            return class_names(table.schema_arrow, self.label_column)

    def blocks(self) -> Iterator[list[Item]]:
        """Row group by row group. Raises ValueError for a damaged table, or one without these columns."""
        return blocks_inside(self.files(), TABLES, self.folder.uri, self._row_groups)

    def _row_groups(self, file: Item) -> Iterator[list[Item]]:
        with self._opened(file.source) as table:
            self._check(table.schema_arrow, file.source)
            if (found := class_names(table.schema_arrow, self.label_column)) != self.classes:
                path = self._path(file.source)
                raise ValueError(f"tables must declare the same classes; {path} has {found}, the first {self.classes}")
            row = count()
            for group in range(table.num_row_groups):
                labels = enumerate(self._labels(table, group, file.source))
                names = (f"{file.source}/{number:06d}" for number in row)
                if block := [Item(next(names), label, file.stamp, at=(group, place)) for place, label in labels]:
                    yield block

    def _labels(self, table: pq.ParquetFile, group: int, file: str) -> list[str | None]:
        if self.label_column not in table.schema_arrow.names:
            return [None] * table.metadata.row_group(group).num_rows
        with self._telling_damage(file):
            column = table.read_row_group(group, columns=[self.label_column])[self.label_column].to_pylist()
        try:
            return label_names(column, class_names(table.schema_arrow, self.label_column))
        except ValueError as err:
            raise ValueError(f"column {self.label_column!r} of {self._path(file)}: {err}") from None

    def _check(self, schema: pa.Schema, file: str) -> None:
        """Raises ValueError if a table lacks a column, or it is of another type."""
        image, label, path, columns = self.image_column, self.label_column, self._path(file), ", ".join(schema.names)
        if image not in schema.names:
            raise ValueError(f"{path} has no column {image!r}, but {columns}; give the one with images as image_column")
        if _leaf(schema.field(image)) is None:
            raise ValueError(
                f"column {image!r} of {path} must hold image files, binary or struct<bytes, path>, and is of type "
                f"{schema.field(image).type}; give another as image_column"
            )
        if label not in schema.names and label not in ("", LABEL_COLUMN):  # asked for by name
            raise ValueError(f"{path} has no column {label!r}, but {columns}; give the one with labels as label_column")
        if label in schema.names and not _is_label(schema.field(label).type):
            raise ValueError(
                f"column {label!r} of {path} must hold whole numbers or text, and is of type "
                f'{schema.field(label).type}; give another as label_column, or "" for no labels'
            )

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """The image column of their row group is read once, and decoded as it is gone through.

        A row whose label is no longer the one that was listed is refused: it is not what it was taken for.
        """
        rows = self._rows(items[0].source.rpartition("/")[0], items[0].at[0])
        for item in items:
            place, content, label = next(filter(lambda row: row[0] >= item.at[1], rows), (-1, CHANGED, None))
            same = isinstance(content, Rejected) or (place, label) == (item.at[1], item.label)
            yield content if same else CHANGED

    def _rows(self, file: str, group: int) -> Iterator[tuple[int, bytes | Rejected, str | None]]:
        """Place, content and label of each row; after a damaged one, the refusal of all that follow."""
        done = 0
        try:
            with self._opened(file) as table:
                self._check(table.schema_arrow, file)
                for contents, labels in self._batches(table, group, file):
                    for content, label in zip(contents, labels, strict=True):
                        yield done, content_of(content), label
                        done += 1
        except ValueError as err:
            refusal = Rejected("unreadable", str(err))
            yield from zip(count(done), repeat(refusal), repeat(None))

    def _batches(self, table: pq.ParquetFile, group: int, file: str) -> Iterator[tuple[pa.Array, list[str | None]]]:
        if group >= table.num_row_groups:
            return
        schema = table.schema_arrow
        columns = [_leaf(schema.field(self.image_column))]
        columns += [self.label_column] if self.label_column in schema.names else []
        with self._telling_damage(file):
            batches = table.iter_batches(BATCH_ROWS, [group], columns, use_threads=False)
        while True:
            with self._telling_damage(file):
                if (batch := next(batches, None)) is None:
                    return
                images = batch[self.image_column]
                contents = pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
                labels = batch[self.label_column].to_pylist() if len(columns) > 1 else [None] * batch.num_rows
            yield contents, label_names(labels, class_names(schema, self.label_column))

    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        """Raises ValueError for what is no whole table."""
        with self._telling_damage(file):
            stream = self.folder.fs.open_input_file(self.folder.at(file))
        with stream:
            with self._telling_damage(file):
                if stream.read_at(len(MAGIC), 0) != MAGIC:  # all else that Arrow looks at is at the end
                    raise ValueError("it does not begin as a Parquet table does")
                table = pq.ParquetFile(stream, page_checksum_verification=True)
            yield table

    @contextmanager
    def _telling_damage(self, file: str) -> Iterator[None]:
        """ValueError, naming the table, for what Arrow raises of a damaged one, or one that cannot be opened.

        Arrow raises OSError both for damage and where the storage fails; it is damage if the bytes can be had.
        """
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as err:
            try:
                with self.folder.fs.open_input_stream(self.folder.at(file)) as stream:
                    while stream.read(STEP_BYTES):
                        pass
            except (FileNotFoundError, PermissionError):
                pass
            raise ValueError(f"cannot read {self._path(file)}: {err}; write or download it again") from None

    def _path(self, file: str) -> str:
        return self.folder.at(file)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of the classes that Hugging Face's `datasets` keeps beside the schema, if the column has any."""
    try:
        said: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = said["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def label_names(values: Sequence[object], classes: Sequence[str] | None) -> list[str | None]:
    """Labels as names: of declared classes by number, else as `label_name`. Raises ValueError for one out of range."""
    if classes is None:
        return [label_name(value) for value in values]
    names: dict[object, str | None] = {None: None, -1: None, **dict(enumerate(classes))}
    if unknown := set(values) - names.keys():
        raise ValueError(
            f"a label must be one of {len(classes)} classes, from 0 on, got {sorted(map(str, unknown))[0]}"
        )
    return [names[value] for value in values]


def content_of(value: pa.Scalar) -> bytes | Rejected:
    """The file in a cell, unless there is none, or it is too large."""
    if not value.is_valid:
        return Rejected("unreadable", "the table holds no file here: it is null")
    if value.as_buffer().size > MAX_BYTES:
        return Rejected("too_large", f"{value.as_buffer().size} bytes are over {MAX_BYTES}")
    content: bytes = value.as_py()
    return content


def _leaf(field: pa.Field) -> str | None:
    """The Parquet column of the files in an image column; None if it has no files."""
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and any(f.name == "bytes" and _is_binary(f.type) for f in field.type):
        return f"{field.name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    )
