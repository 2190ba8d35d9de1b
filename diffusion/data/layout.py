"""What lies where in a shard set, and what its tables hold."""

from __future__ import annotations

import pyarrow as pa

SPLITS = ("train", "val")
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int64()),
        ("index", pa.int64()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("label", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("source", pa.string()),
        ("source_sha256", pa.string()),
        ("sha256", pa.string()),
    ]
)
REJECTS_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def tar_name(split: str, shard: int) -> str:
    """Of the pictures that a shard has in a split."""
    return f"{split}-{shard:06d}.tar"


def part_name(table: str, shard: int) -> str:
    """Where the rows of one shard are, in the folder of `manifest` or `rejects`."""
    return f"{table}.parquet/part-{shard:06d}.parquet"


def report_name(shard: int) -> str:
    """Where the report is that says that a shard is done."""
    return f"plan/shard-{shard:06d}.json"
