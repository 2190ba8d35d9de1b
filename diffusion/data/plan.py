"""Deciding, before an image is opened, which inputs go into which shard.

The listing is streamed: a block is a few consecutive inputs that are read at once (64 files, a row group), blocks are
written to `plan/` as Parquet row groups, and a keyed permutation of the blocks gives each shard its own. The driver
never holds a list of samples.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..seeding import permuted
from ..settings import narrowed
from .images import ENCODINGS, FITS, MODES
from .sources import IMAGE_COLUMN, LABEL_COLUMN, Item, Source, open_source, sorted_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..files import Folder

BLOCKS_PER_FILE = 1024
PLAN = "plan/plan.json"
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("label", pa.string()),
        ("is_image", pa.bool_()),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What a shard set is made of. The same values and the same source give the same bytes."""

    source: tuple[str, ...] = ("digits",)
    """a folder of images (its subfolders are the classes), Parquet tables or archives, one of these, or digits; several
    are laid one after the other"""
    image_column: str = IMAGE_COLUMN
    """of Parquet tables: what holds the image files"""
    label_column: str = LABEL_COLUMN
    """of Parquet tables and metadata files: what holds the labels; empty: none"""
    image_size: int = 32
    """side in pixels of the square pictures that are written"""
    channels: int = 0
    """1 grey, 3 RGB, 0: what the source says (digits 1, others 3)"""
    fit: Literal["crop", "pad"] = "crop"
    """crop: the centre square of a picture; pad: the whole picture, on white"""
    encoding: Literal["png", "jpeg", "webp", "npy"] = "png"
    """of the pictures in the tars; npy: raw uint8, for the fastest reading"""
    quality: int = 95
    """of jpeg and webp, 1 to 100"""
    min_side: int = 0
    """leave out pictures whose shorter side has fewer pixels; 0: none"""
    max_aspect: float = 0.0
    """leave out pictures whose longer side is more than so many times the shorter; 0: none"""
    dedupe: bool = False
    """leave out inputs that are byte for byte the same as an earlier one"""
    samples_per_shard: int = 4096
    """a target: shards are cut at blocks, of 64 files or of a Parquet row group"""
    val_fraction: float = 0.1
    """share of the inputs, by content hash, that training never sees"""
    max_reject_fraction: float = 0.01
    """fail the job if more than this share of the pictures is refused"""
    seed: int = 0
    """of the order in which samples are laid into shards"""

    def __post_init__(self) -> None:
        if not self.source or not all(self.source):
            raise ValueError(f"source must be one or more folders of images, or digits, got {list(self.source)}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.channels not in (0, *MODES):
            raise ValueError(f"channels must be 0 (as the source), 1 or 3, got {self.channels}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if self.min_side < 0:
            raise ValueError(f"min_side must be at least 0, got {self.min_side}")
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise ValueError(f"max_aspect must be at least 1, or 0 for any, got {self.max_aspect}")
        for name, allowed in (("fit", FITS), ("encoding", tuple(ENCODINGS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must lie in [0, 1], got {self.max_reject_fraction}")

    @property
    def fingerprint(self) -> str:
        """Of the values above and nothing that a subclass adds: 32 hex characters."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def values(self) -> dict[str, Any]:
        """As JSON keeps them, without what a subclass adds."""
        return {**narrowed(ShardConfig, self), "source": list(self.source)}

    def open_source(self) -> Source:
        """The images that the set is made of. Raises ValueError if they are not there."""
        return open_source(self.source, self.image_column, self.label_column)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was listed, and how it is cut into shards."""

    config: ShardConfig
    source_fingerprint: str
    classes: list[str]
    channels: int
    num_blocks: int
    num_items: int
    num_images: int
    """inputs that claim, by their name, to be a picture, with those that an earlier run put into the set"""
    first_shard: int = 0
    """the shards before it are an earlier run's"""

    @property
    def shards(self) -> range:
        """Their numbers; each has as many blocks as its target of samples takes."""
        return range(self.first_shard, self.first_shard - (-self.num_blocks // self._blocks_per_shard))

    def blocks(self, shard: int) -> list[int]:
        """The blocks whose inputs go into this shard: every block is in exactly one."""
        start = self.shards.index(shard) * self._blocks_per_shard
        places = range(self.num_blocks)[start : start + self._blocks_per_shard]
        return [permuted(place, self.num_blocks, self.config.seed, "blocks") for place in places]

    def label(self, item: Item) -> int:
        """The label of an input; -1: none."""
        return -1 if item.label is None else self._labels[item.label]

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def _blocks_per_shard(self) -> int:
        return max(1, self.config.samples_per_shard * self.num_blocks // max(1, self.num_items))


class Listing:
    """What is in the blocks that pass through it."""

    def __init__(self) -> None:
        self.num_blocks = self.num_items = self.num_images = 0
        self._digest = hashlib.sha256()
        self._labels: set[str] = set()

    def of(self, blocks: Iterator[list[Item]]) -> Iterator[list[Item]]:
        """The same blocks, noted down as they pass."""
        for block in blocks:
            for item in block:
                self._digest.update(json.dumps(item).encode())
            self.num_blocks += 1
            self.num_items += len(block)
            self.num_images += sum(item.is_image for item in block)
            self._labels.update(item.label for item in block if item.label is not None)
            yield block

    @property
    def fingerprint(self) -> str:
        """32 hex characters of names, labels, sizes and times."""
        return self._digest.hexdigest()[:32]

    @property
    def classes(self) -> list[str]:
        """The names of all labels that were seen."""
        return sorted_classes(self._labels)


def source_fingerprint(blocks: Iterator[list[Item]]) -> str:
    """Another one when anything that a source lists may have changed."""
    listing = Listing()
    for _ in listing.of(blocks):
        pass
    return listing.fingerprint


@dataclass(frozen=True)
class Known:
    """What a set has already that is added to; by default nothing."""

    num_shards: int = 0
    num_images: int = 0
    classes: tuple[str, ...] = ()
    channels: int = 0
    sift: Callable[[Iterator[list[Item]]], Iterator[list[Item]]] = iter
    """blocks without the inputs that the set has"""


def make_plan(config: ShardConfig, out: Folder, known: Known | None = None) -> Plan:
    """List the source into `plan/` of `out`, and say what was found; the plan file itself is written last.

    Raises ValueError if the source is not there.
    """
    known, source = known or Known(), config.open_source()
    whole, new = Listing(), Listing()
    spill(new.of(known.sift(whole.of(source.blocks()))), out)
    channels = config.channels or known.channels or source.channels
    if channels == 1 and config.encoding == "webp":
        raise ValueError("encoding must be png, jpeg or npy for grey pictures, which WebP does not know, got webp")
    listed = whole.classes if source.classes is None else source.classes
    plan = Plan(
        config=ShardConfig(**narrowed(ShardConfig, config)),
        source_fingerprint=whole.fingerprint,
        classes=list(dict.fromkeys([*known.classes, *listed])),  # labels that were given stay what they are
        channels=channels,
        num_blocks=new.num_blocks,
        num_items=new.num_items,
        num_images=known.num_images + new.num_images,
        first_shard=known.num_shards,
    )
    out.write_json(PLAN, {**asdict(plan), "config": plan.config.values})
    return plan


def read_plan(out: Folder) -> Plan | None:
    """The plan that an earlier run finished writing, if there is one."""
    if not out.exists(PLAN):
        return None
    saved = out.read_json(PLAN)
    config = saved.pop("config")
    return Plan(**saved, config=ShardConfig(**{**config, "source": tuple(config["source"])}))


def read_block(out: Folder, block: int) -> list[Item]:
    """The inputs of one block of the plan; their stamps are not kept."""
    with out.fs.open_input_file(out.at(_file_name(block // BLOCKS_PER_FILE))) as stream:
        rows = pq.ParquetFile(stream).read_row_group(block % BLOCKS_PER_FILE).to_pylist()
    return [Item(row["source"], row["label"], "", row["is_image"], (row["start"], row["length"])) for row in rows]


def spill(blocks: Iterator[list[Item]], out: Folder) -> None:
    """Write blocks to `plan/` as they come, a row group each."""
    out.fs.create_dir(out.at("plan"), recursive=True)
    for number, head in enumerate(iter(lambda: next(blocks, None), None)):
        with (
            out.fs.open_output_stream(out.at(_file_name(number))) as stream,
            pq.ParquetWriter(stream, SCHEMA) as writer,
        ):
            for block in chain([head], islice(blocks, BLOCKS_PER_FILE - 1)):
                rows = [(item.source, item.label, item.is_image, *item.at) for item in block]
                named = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
                writer.write_table(pa.Table.from_pylist(named, schema=SCHEMA), row_group_size=len(block))


def _file_name(number: int) -> str:
    return f"plan/blocks-{number:06d}.parquet"
