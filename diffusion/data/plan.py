"""Deciding, before an image is opened, which inputs go into which shard.

The listing is streamed: a block is up to 64 consecutive inputs, blocks are written to `plan/` as Parquet row
groups, and a keyed permutation of the blocks gives each shard its own. The driver never holds a list of samples.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..seeding import generator
from ..settings import narrowed
from .images import MODES
from .sources import Item, is_image_name, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..files import Folder

BLOCK_ITEMS = 64
BLOCKS_PER_FILE = 1024
PLAN = "plan/plan.json"
SCHEMA = pa.schema([("source", pa.string()), ("label", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What a shard set is made of. The same values and the same source give the same bytes."""

    source: str = "digits"
    """a folder of images (its subfolders are the classes), or digits"""
    image_size: int = 32
    """side in pixels of the square pictures that are written"""
    channels: int = 0
    """1 grey, 3 RGB, 0: what the source says (digits 1, folders 3)"""
    samples_per_shard: int = 4096
    """a target: shards are cut at blocks of 64 inputs"""
    val_fraction: float = 0.1
    """share of the inputs, by content hash, that training never sees"""
    max_reject_fraction: float = 0.01
    """fail the job if more than this share of the pictures is refused"""
    seed: int = 0
    """of the order in which samples are laid into shards"""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source must be a folder of images, or digits, got ''")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.channels not in (0, *MODES):
            raise ValueError(f"channels must be 0 (as the source), 1 or 3, got {self.channels}")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must lie in [0, 1], got {self.max_reject_fraction}")

    @property
    def fingerprint(self) -> str:
        """Of the values above and nothing that a subclass adds: 32 hex characters."""
        values = narrowed(ShardConfig, self)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was listed, and how it is cut into shards."""

    config: dict[str, Any]
    config_fingerprint: str
    source_fingerprint: str
    classes: list[str] = field(default_factory=list)
    channels: int
    num_items: int
    num_images: int
    """inputs that claim, by their name, to be a picture"""

    @property
    def num_blocks(self) -> int:
        """Of up to 64 inputs."""
        return -(-self.num_items // BLOCK_ITEMS)

    @property
    def num_shards(self) -> int:
        """Each with as many blocks as its target of samples takes."""
        return -(-self.num_blocks // self._blocks_per_shard)

    def blocks(self, shard: int) -> list[int]:
        """The blocks whose inputs go into this shard: every block is in exactly one."""
        order = generator(self.config["seed"], "blocks").permutation(self.num_blocks)
        return [int(b) for b in order[shard * self._blocks_per_shard : (shard + 1) * self._blocks_per_shard]]

    @property
    def _blocks_per_shard(self) -> int:
        return int(max(1, self.config["samples_per_shard"] // BLOCK_ITEMS))


def source_fingerprint(items: Iterator[Item]) -> tuple[str, int, int]:
    """(fingerprint, number of inputs, number that claim to be pictures) of a listing: names, labels, sizes, times."""
    digest, num_items, num_images = hashlib.sha256(), 0, 0
    for item in items:
        digest.update(json.dumps(item).encode())
        num_items += 1
        num_images += is_image_name(item.source)
    return digest.hexdigest()[:32], num_items, num_images


def make_plan(config: ShardConfig, out: Folder) -> Plan:
    """List the source into `plan/` of `out`, and say what was found; the plan file itself is written last.

    Raises ValueError if the source is not there.
    """
    source = open_source(config.source)
    seen = source_fingerprint(_spilled(source.items(), out))
    plan = Plan(
        config=narrowed(ShardConfig, config),
        config_fingerprint=config.fingerprint,
        source_fingerprint=seen[0],
        classes=source.classes,
        channels=config.channels or source.channels,
        num_items=seen[1],
        num_images=seen[2],
    )
    out.write_json(PLAN, asdict(plan))
    return plan


def read_plan(out: Folder) -> Plan | None:
    """The plan that an earlier run finished writing, if there is one."""
    return Plan(**out.read_json(PLAN)) if out.exists(PLAN) else None


def read_items(out: Folder, blocks: list[int]) -> list[tuple[str, int]]:
    """(source, label) of every input of these blocks."""
    items: list[tuple[str, int]] = []
    for block in blocks:
        with out.fs.open_input_file(out.at(_file_name(block // BLOCKS_PER_FILE))) as stream:
            table = pq.ParquetFile(stream).read_row_group(block % BLOCKS_PER_FILE)
        items += zip(table["source"].to_pylist(), table["label"].to_pylist(), strict=True)
    return items


def _spilled(items: Iterator[Item], out: Folder) -> Iterator[Item]:
    """The same items, written to `plan/` block by block as they pass."""
    for number, head in enumerate(iter(lambda: list(islice(items, BLOCK_ITEMS)), [])):
        out.fs.create_dir(out.at("plan"), recursive=True)
        with (
            out.fs.open_output_stream(out.at(_file_name(number))) as stream,
            pq.ParquetWriter(stream, SCHEMA) as writer,
        ):
            block = head
            for index in range(BLOCKS_PER_FILE):
                writer.write_table(
                    pa.table([[i.source for i in block], [i.label for i in block]], schema=SCHEMA),
                    row_group_size=BLOCK_ITEMS,
                )
                yield from block
                if index == BLOCKS_PER_FILE - 1 or not (block := list(islice(items, BLOCK_ITEMS))):
                    break


def _file_name(number: int) -> str:
    return f"plan/blocks-{number:06d}.parquet"
