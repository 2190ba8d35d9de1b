"""Making one shard: read, refuse or fit, split, write, read back, and only then say that it is done."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..seeding import generator
from .duplicates import place_of, read_duplicates
from .images import ENCODINGS, Rejected, encode, fit_image
from .layout import MANIFEST_SCHEMA, REJECTS_SCHEMA, SPLITS, part_name, report_name, tar_name
from .plan import read_block
from .sources.base import NOT_READ
from .tar import read_headers, write_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..files import Folder
    from .plan import Plan
    from .sources import Item

DUPLICATE = "duplicate"
SET_ASIDE = (NOT_READ.reason, DUPLICATE, "too_small", "too_elongated")
"""reasons why an input is left out on purpose: recorded, but not held against the source"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture on its way into a shard."""

    index: int
    split: str
    image: bytes
    """the file"""
    extension: str = "png"
    """of the file"""
    label: int
    """-1: none"""
    side: int
    source: str
    source_sha256: str


@dataclass(frozen=True)
class TarStats:
    """One tar of a shard set."""

    name: str
    shard: int
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
    part_sha256: str = ""
    """of its part of the manifest"""

    @property
    def num_samples(self) -> int:
        """In all its tars."""
        return sum(tar.num_samples for tar in self.tars)


def make_shard(plan: Plan, shard: int, out: Folder) -> ShardReport:
    """Make one shard of a plan. Safe to run again.

    Raises OSError where the storage fails; an input that fails is a row in the rejects.
    """
    blocks = {number: read_block(out, number) for number in plan.blocks(shard)}
    order = generator(plan.config.seed, "samples", lane=shard).permutation(sum(map(len, blocks.values())))
    places = np.argsort(order).tolist()  # of each input, in the order in which they are read
    samples: list[Sample] = []
    rejects: list[tuple[int, dict[str, str]]] = []
    for place, (item, content) in zip(places, _inputs(plan, blocks, out), strict=True):
        try:
            samples.append(_sample(item, content, place, plan))
        except Rejected as err:
            rejects.append((place, {"source": item.source, "reason": err.reason, "detail": err.detail}))
    samples.sort(key=attrgetter("index"))
    return write_shard(shard, samples, [row for _, row in sorted(rejects, key=itemgetter(0))], out)


def write_shard(shard: int, samples: list[Sample], rejects: list[dict[str, str]], out: Folder) -> ShardReport:
    """Write the tars of one shard, read back and checked, its manifest and its rejects, and its report last."""
    rows: list[dict[str, Any]] = []
    tars: list[TarStats] = []
    for split in SPLITS:
        mine = [sample for sample in samples if sample.split == split]
        if mine:
            name = tar_name(split, shard)
            data = write_tar(_entry(shard, sample) for sample in mine)
            rows += _manifest_rows(shard, mine, data)
            out.write(name, data)
            tars.append(TarStats(name, shard, split, len(mine), len(data), hashlib.sha256(data).hexdigest()))
    part_sha256 = out.write_table(part_name("manifest", shard), pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    if rejects:
        out.write_table(part_name("rejects", shard), pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA))
    report = ShardReport(shard, tars, dict(Counter(row["reason"] for row in rejects)), part_sha256)
    out.write_json(report_name(shard), asdict(report))
    return report


def read_report(out: Folder, shard: int) -> ShardReport | None:
    """The report of a shard that is already done, if it is."""
    if not out.exists(report_name(shard)):
        return None
    saved = out.read_json(report_name(shard))
    return ShardReport(**{**saved, "tars": [TarStats(**tar) for tar in saved["tars"]]})


def split_of(source_sha256: str, val_fraction: float) -> str:
    """train or val, by content: equal inputs always land on the same side."""
    return "val" if int(source_sha256[:8], 16) < val_fraction * 2**32 else "train"


def _inputs(plan: Plan, blocks: dict[int, list[Item]], out: Folder) -> Iterator[tuple[Item, bytes | Rejected]]:
    """The inputs of these blocks with their contents, one block in memory at a time."""
    source = plan.config.open_source()
    first = read_duplicates(plan, blocks, out) if plan.config.dedupe else {}
    for number, block in blocks.items():
        for index, (item, content) in enumerate(zip(block, source.read(block), strict=True)):
            earlier = first.get(place_of(number, index))
            yield item, Rejected(DUPLICATE, f"the same bytes as {earlier}") if earlier else content


def _sample(item: Item, content: bytes | Rejected, index: int, plan: Plan) -> Sample:
    """Raises Rejected, of the source or of its own."""
    if not item.is_image:
        raise Rejected(NOT_READ.reason, NOT_READ.detail)  # a new one: raised again and again, one keeps every frame
    if isinstance(content, Rejected):
        raise content
    config, source_sha256 = plan.config, hashlib.sha256(content).hexdigest()
    pixels = fit_image(content, config.image_size, plan.channels, config.fit, config.min_side, config.max_aspect)
    return Sample(
        index=index,
        split=split_of(source_sha256, config.val_fraction),
        image=encode(pixels, config.encoding, config.quality),
        extension=ENCODINGS[config.encoding],
        label=plan.label(item),
        side=config.image_size,
        source=item.source,
        source_sha256=source_sha256,
    )


def _key(shard: int, sample: Sample) -> str:
    return f"{shard:06d}-{sample.index:06d}"


def _entry(shard: int, sample: Sample) -> dict[str, str | bytes]:
    entry: dict[str, str | bytes] = {"__key__": _key(shard, sample), sample.extension: sample.image}
    return entry if sample.label < 0 else {**entry, "cls": str(sample.label).encode()}


def _manifest_rows(shard: int, samples: list[Sample], tar: bytes) -> list[dict[str, Any]]:
    """A row a sample, with its offset found in the tar; raises RuntimeError if the tar does not hold it unchanged."""
    images = [member for member in read_headers(tar) if not member.name.endswith(".cls")]
    rows = []
    for sample, member in zip(samples, images, strict=True):
        if member.name != f"{_key(shard, sample)}.{sample.extension}" or member.data(tar) != sample.image:
            raise RuntimeError(f"shard {shard} does not read back as it was written, at {member.name}")
        row = {name: getattr(sample, name) for name in ("split", "index", "label", "source", "source_sha256")}
        place = {"offset": member.offset, "num_bytes": member.num_bytes, "width": sample.side, "height": sample.side}
        sha256 = hashlib.sha256(sample.image).hexdigest()
        rows.append({"key": _key(shard, sample), "shard": shard, "sha256": sha256, **place, **row})
    return rows
