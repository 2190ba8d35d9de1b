"""Finding inputs that are byte for byte the same, at any number of them: by hash, a bucket of hashes at a time."""

from __future__ import annotations

import hashlib
import operator
from functools import reduce
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .images import Rejected
from .layout import part_name
from .plan import read_block

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..files import Folder
    from .plan import Plan

BUCKET_ITEMS = 4_000_000
"""hashes that are held in memory at once: half a gigabyte with their names"""
HASHES = pa.schema([("sha256", pa.binary(32)), ("place", pa.int64()), ("source", pa.string())])
KNOWN = -1
"""the place of what an earlier run of --append has in the set: before all others"""
PLACE_BITS = 32


def place_of(block: int, index: int) -> int:
    """Where an input stands in the listing, as one number that grows along it."""
    return block << PLACE_BITS | index


def num_buckets(plan: Plan) -> int:
    """How many parts the hashes are compared in."""
    return -(-plan.num_items // BUCKET_ITEMS)


def hash_inputs(plan: Plan, shard: int, out: Folder) -> int:
    """Write the sha256 of every readable input of one shard, a row group for each bucket; how many there are.

    Raises OSError where the storage fails.
    """
    source, count = plan.config.open_source(), num_buckets(plan)
    buckets: list[list[dict[str, object]]] = [[] for _ in range(count)]
    for number in plan.blocks(shard):
        block = read_block(out, number)
        for index, (item, content) in enumerate(zip(block, source.read(block), strict=True)):
            if item.is_image and not isinstance(content, Rejected):
                sha256 = hashlib.sha256(content).digest()
                place = place_of(number, index)
                buckets[_bucket(sha256, count)].append({"sha256": sha256, "place": place, "source": item.source})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, HASHES) as writer:
        for rows in buckets:
            writer.write_table(pa.Table.from_pylist(rows, schema=HASHES), row_group_size=max(1, len(rows)))
    out.write(_hashes_name(shard), sink.getvalue().to_pybytes())
    return sum(map(len, buckets))


def find_duplicates(plan: Plan, bucket: int, out: Folder) -> int:
    """Write which inputs with a hash of this bucket are the same as an earlier one, and which; how many there are."""
    tables = [_hashes_of_shard(out, shard, bucket) for shard in plan.shards]
    tables += [_hashes_of_manifest(out, shard, bucket, num_buckets(plan)) for shard in range(plan.first_shard)]
    rows = pa.concat_tables(tables)
    first = rows.group_by("sha256").aggregate([("place", "min")])
    rows = rows.join(first, "sha256")
    names = rows.filter(pc.equal(rows["place"], rows["place_min"])).select(["sha256", "source"])
    later = rows.filter(pc.greater(rows["place"], rows["place_min"])).select(["sha256", "place"])
    found = later.join(names.group_by("sha256").aggregate([("source", "min")]), "sha256")
    table = pa.table({"place": found["place"], "first": found["source_min"]}).sort_by("place")
    out.write_table(_duplicates_name(bucket), table)
    return len(table)


def read_duplicates(plan: Plan, blocks: Iterable[int], out: Folder) -> dict[int, str]:
    """For the inputs of these blocks that are the same as an earlier one: by place, the name of that one."""
    place = pc.field("place")
    wanted = [(place >= place_of(block, 0)) & (place < place_of(block + 1, 0)) for block in blocks]
    condition = reduce(operator.or_, wanted)
    found: dict[int, str] = {}
    for bucket in range(num_buckets(plan)):
        rows = pq.read_table(out.at(_duplicates_name(bucket)), filesystem=out.fs, filters=condition)
        found.update(zip(rows["place"].to_pylist(), rows["first"].to_pylist(), strict=True))
    return found


def num_hashed(out: Folder, shard: int) -> int | None:
    """How many inputs of this shard an earlier attempt hashed; None if it did not."""
    if not out.exists(_hashes_name(shard)):
        return None
    with out.fs.open_input_file(out.at(_hashes_name(shard))) as stream:
        return int(pq.ParquetFile(stream).metadata.num_rows)


def _bucket(sha256: bytes, count: int) -> int:
    return int.from_bytes(sha256[:4], "big") * count >> 32


def _hashes_of_shard(out: Folder, shard: int, bucket: int) -> pa.Table:
    with out.fs.open_input_file(out.at(_hashes_name(shard))) as stream:
        return pq.ParquetFile(stream).read_row_group(bucket)


def _hashes_of_manifest(out: Folder, shard: int, bucket: int, count: int) -> pa.Table:
    rows = out.read_table(part_name("manifest", shard), columns=["source_sha256", "source"]).to_pylist()
    known = [(bytes.fromhex(row["source_sha256"]), KNOWN, row["source"]) for row in rows]
    mine = [dict(zip(HASHES.names, row, strict=True)) for row in known if _bucket(row[0], count) == bucket]
    return pa.Table.from_pylist(mine, schema=HASHES)


def _hashes_name(shard: int) -> str:
    return f"plan/hashes-{shard:06d}.parquet"


def _duplicates_name(bucket: int) -> str:
    return f"plan/duplicates-{bucket:06d}.parquet"
