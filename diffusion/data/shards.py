"""Making one shard: read, refuse or fit, split, write, read back, and only then say that it is done."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..seeding import generator
from .images import Rejected, encode_png, fit_image
from .plan import read_items
from .sources import is_image_name, open_source
from .tar import read_headers, write_tar

if TYPE_CHECKING:
    from ..files import Folder
    from .plan import Plan
    from .sources import Source

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
NOT_AN_IMAGE_NAME = "not_an_image_name"  # never claimed to be a picture: recorded, but not held against the source


@dataclass(frozen=True)
class TarStats:
    """One tar of a shard set."""

    name: str
    split: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardReport:
    """What came of one shard."""

    shard: int
    tars: list[TarStats]
    rejects: dict[str, int]
    """how many inputs were refused, by reason"""

    @property
    def num_samples(self) -> int:
        """In all its tars."""
        return sum(tar.num_samples for tar in self.tars)


def make_shard(plan: Plan, shard: int, out: Folder) -> ShardReport:
    """Write one shard's tars, its manifest and its rejects, and its report last. Safe to run again.

    Raises OSError where the storage fails; an input that fails is a row in the rejects.
    """
    source = open_source(plan.config["source"])
    items = read_items(out, plan.blocks(shard))
    order = generator(plan.config["seed"], "samples", lane=shard).permutation(len(items))
    rows: list[dict[str, Any]] = []
    images: list[bytes] = []
    rejects: list[dict[str, str]] = []
    for index, (name, label) in enumerate(items[i] for i in order):
        try:
            row, image = _read_sample(source, name, plan)
        except Rejected as err:
            rejects.append({"source": name, "reason": err.reason, "detail": err.detail})
            continue
        rows.append({"key": f"{shard:06d}-{index:06d}", "shard": shard, "index": index, "label": label, **row})
        images.append(image)
    tars = [_write_split(split, shard, rows, images, out) for split in SPLITS]
    out.write_table(_part("manifest", shard), pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    if rejects:
        out.write_table(_part("rejects", shard), pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA))
    report = ShardReport(shard, [tar for tar in tars if tar], dict(Counter(row["reason"] for row in rejects)))
    out.write_json(_report_name(shard), asdict(report))
    return report


def read_report(out: Folder, shard: int) -> ShardReport | None:
    """The report of a shard that is already done, if it is."""
    if not out.exists(_report_name(shard)):
        return None
    saved = out.read_json(_report_name(shard))
    return ShardReport(saved["shard"], [TarStats(**tar) for tar in saved["tars"]], saved["rejects"])


def split_of(source_sha256: str, val_fraction: float) -> str:
    """train or val, by content: equal inputs always land on the same side."""
    return "val" if int(source_sha256[:8], 16) < val_fraction * 2**32 else "train"


def _read_sample(source: Source, name: str, plan: Plan) -> tuple[dict[str, Any], bytes]:
    if not is_image_name(name):
        raise Rejected(NOT_AN_IMAGE_NAME, "its suffix is not that of an image")
    try:
        data = source.read(name)
    except (FileNotFoundError, PermissionError) as err:  # other faults of the storage fail the task, which is retried
        raise Rejected("unreadable", str(err)) from err
    size: int = plan.config["image_size"]
    image = encode_png(fit_image(data, size, plan.channels))
    source_sha256 = hashlib.sha256(data).hexdigest()
    row = {
        "split": split_of(source_sha256, plan.config["val_fraction"]),
        "num_bytes": len(image),
        "width": size,
        "height": size,
        "source": name,
        "source_sha256": source_sha256,
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return row, image


def _write_split(
    split: str, shard: int, rows: list[dict[str, Any]], images: list[bytes], out: Folder
) -> TarStats | None:
    """Write the tar of one split, checked member by member against the rows, whose offsets it fills in."""
    mine = [(row, image) for row, image in zip(rows, images, strict=True) if row["split"] == split]
    if not mine:
        return None
    samples: list[dict[str, str | bytes]] = []
    for row, image in mine:
        label = {"cls": str(row["label"]).encode()} if row["label"] >= 0 else {}
        samples.append({"__key__": row["key"], "png": image, **label})
    data = write_tar(samples)
    written = [member for member in read_headers(data) if member.name.endswith(".png")]
    for (row, _), member in zip(mine, written, strict=True):
        row["offset"] = member.offset
        image = data[member.offset : member.offset + member.num_bytes]
        if member.name != f"{row['key']}.png" or hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise AssertionError(f"{split}-{shard:06d}.tar does not read back as written at {member.name}")
    name = f"{split}-{shard:06d}.tar"
    out.write(name, data)
    return TarStats(name, split, len(mine), len(data), hashlib.sha256(data).hexdigest())


def _part(table: str, shard: int) -> str:
    return f"{table}.parquet/part-{shard:06d}.parquet"


def _report_name(shard: int) -> str:
    return f"plan/shard-{shard:06d}.json"
