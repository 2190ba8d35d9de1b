"""Adding to a finished shard set what its manifest does not know."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .layout import part_name
from .plan import Known

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import ShardConfig
    from .shard_set import ShardSet
    from .sources import Item

FIND = "SELECT 1 FROM known WHERE name = ?"


def check_appendable(config: ShardConfig, shards: ShardSet) -> None:
    """Raises ValueError if shards of this config cannot stand beside those of the set.

    All must be the same but the source, which may have more folders after those that the set was made of.
    """
    known = shards.config.get("source", [])
    if list(config.source[: len(known)]) != known:
        raise ValueError(f"source must begin with those of the set, {' '.join(known)}, got {' '.join(config.source)}")
    changed = [name for name, value in config.values.items() if name != "source" and shards.config.get(name) != value]
    if changed:
        raise ValueError(
            f"--append needs the settings that {shards.folder.uri} was made with; {', '.join(changed)} "
            f"{'is' if len(changed) == 1 else 'are'} another"
        )


def known_of(shards: ShardSet) -> Known:
    """What the set has, so that a plan takes nothing twice; inputs that were refused before are not among it.

    An input is known by its name: that its content changed is not noticed.
    """
    return Known(
        num_shards=max(len(shards.parts), *(tar.shard + 1 for tar in shards.tars)),
        num_images=sum(tar.num_samples for tar in shards.tars),
        classes=tuple(shards.classes),
        channels=shards.channels,
        sift=partial(unknown, shards),
    )


def unknown(shards: ShardSet, blocks: Iterator[list[Item]]) -> Iterator[list[Item]]:
    """Blocks without the inputs that the set's manifest names.

    The names are in a table on the local disk meanwhile: memory is flat, at some 100 bytes of disk a sample.
    """
    with TemporaryDirectory() as folder, sqlite3.connect(Path(folder) / "known") as table:
        table.execute("CREATE TABLE known (name TEXT PRIMARY KEY) WITHOUT ROWID")
        for shard in sorted({tar.shard for tar in shards.tars}):
            rows = shards.folder.read_table(part_name("manifest", shard), columns=["source"])
            table.executemany("INSERT INTO known VALUES (?)", zip(rows["source"].to_pylist(), strict=True))
        for block in blocks:
            if new := [item for item in block if not table.execute(FIND, (item.source,)).fetchone()]:
                yield new
