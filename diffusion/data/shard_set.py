"""A finished shard set: `dataset.json`, the manifest, and the tars they vouch for."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from .layout import SPLITS, part_name
from .seal import seal_of
from .shards import SET_ASIDE, ShardReport, TarStats

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from ..files import Folder
    from .plan import Plan

DATASET = "dataset.json"
FORMAT_VERSION = 1
SPREAD_OVER = 16  # tars, at most: each is another file to open
PART = re.compile(r"(?:train|val|part)-(\d{6,})\.(?:tar|parquet)")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a set before its first shard is made."""

    image_size: int
    channels: int
    classes: list[str]
    config: dict[str, Any]
    config_fingerprint: str
    source_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ShardSet(Header):
    """What `dataset.json` says. `tars` is sorted by name."""

    folder: Folder
    tars: list[TarStats]
    rejects: dict[str, int]
    digest: str
    parts: dict[str, str] = field(default_factory=dict)
    """sha256 of every part of the manifest, by name"""

    def split(self, name: str) -> list[TarStats]:
        """The tars of one split, in order."""
        return [tar for tar in self.tars if tar.split == name]

    def num_samples(self, split: str) -> int:
        """How many samples a split has."""
        return sum(tar.num_samples for tar in self.split(split))

    def spread(self, split: str, num: int) -> list[int]:
        """Positions of at most `num` samples from all over a split, as many of each of some tars.

        A tar's own may have been neighbours in the source.
        """
        sizes = [tar.num_samples for tar in self.split(split)]
        starts = [0, *accumulate(sizes)]
        chosen = range(0, len(sizes), -(-len(sizes) // SPREAD_OVER) or 1)
        each = num // max(1, len(chosen))
        return [starts[tar] + number for tar in chosen for number in range(min(each, sizes[tar]))]

    @property
    def counts(self) -> dict[str, int]:
        """Samples by split."""
        return {split: self.num_samples(split) for split in SPLITS}

    def manifest(self, tar: TarStats, columns: list[str]) -> pa.Table:
        """The manifest's rows of one tar, in its order."""
        table = self.folder.read_table(part_name("manifest", tar.shard), columns=[*columns, "split"])
        return table.filter(pc.equal(table["split"], tar.split)).select(columns)

    def checked_tar(self, tar: TarStats) -> bytes:
        """A tar's bytes. Raises ValueError if they do not have the sha256 that was committed."""
        data = self.folder.read(tar.name)
        if hashlib.sha256(data).hexdigest() != tar.sha256:
            raise ValueError(f"{self.folder.uri}/{tar.name} is damaged: it does not have the sha256 of {DATASET}")
        return data


def digest_of(tars: Iterable[TarStats]) -> str:
    """The name of the content: 32 hex characters of the sha256 over the sorted "name sha256" lines."""
    lines = sorted(f"{tar.name} {tar.sha256}\n" for tar in tars)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def commit(header: Header, reports: list[ShardReport], out: Folder, old: ShardSet | None = None) -> ShardSet:
    """Write `dataset.json`, from which moment the set exists; `old` is the set that the shards are added to."""
    known, known_parts = ([], {}) if old is None else (old.tars, old.parts)
    tars = sorted((*known, *(tar for report in reports for tar in report.tars)), key=lambda tar: tar.name)
    counts = {split: sum(tar.num_samples for tar in tars if tar.split == split) for split in SPLITS}
    value = {
        **asdict(header),
        "format_version": FORMAT_VERSION,
        "counts": counts,
        "tars": [asdict(tar) for tar in tars],
        "rejects": count_rejects(reports),
        "digest": digest_of(tars),
        "parts": {**known_parts, **{part_name("manifest", report.shard): report.part_sha256 for report in reports}},
    }
    out.write_json(DATASET, {**value, "seal": seal_of(value)})
    return open_shard_set(out)


def commit_plan(plan: Plan, reports: list[ShardReport], out: Folder, old: ShardSet | None = None) -> ShardSet:
    """Commit the shards of a plan, beside those of the set that it adds to, whose rejects it tried again.

    Raises ValueError, leaving the records, if more than `max_reject_fraction` of what claims to be a picture was
    refused, or none is left to train on.
    """
    rejects = count_rejects(reports)
    refused = sum(count for reason, count in rejects.items() if reason not in SET_ASIDE)
    limit = plan.config.max_reject_fraction
    if refused / plan.num_images > limit:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejects.items())
        raise ValueError(
            f"{refused} of {plan.num_images} images were refused ({reasons}), more than max_reject_fraction={limit}; "
            f"see {out.uri}/rejects.parquet, mend them or raise the limit"
        )
    if old is None and not any(tar.split == "train" for report in reports for tar in report.tars):
        raise ValueError(f"val_fraction={plan.config.val_fraction} left no image to train on, of {plan.num_images}")
    header = Header(
        image_size=plan.config.image_size,
        channels=plan.channels,
        classes=plan.classes,
        config=plan.config.values,
        config_fingerprint=plan.config.fingerprint,
        source_fingerprint=plan.source_fingerprint,
    )
    shards = commit(header, reports, out, old)
    _delete_parts(out, "rejects.parquet", range(plan.first_shard))
    return shards


def delete_from(out: Folder, first_shard: int) -> None:
    """Remove a plan, and what an unfinished run of it left of the shards from this number on."""
    out.delete("plan")
    for folder in ("", "manifest.parquet", "rejects.parquet"):
        _delete_parts(out, folder, range(first_shard, sys.maxsize))


def _delete_parts(out: Folder, folder: str, shards: range) -> None:
    """The files of these shards in a folder of the set; "": the tars."""
    for name in out.names(folder):
        part = PART.fullmatch(name)
        if part and int(part[1]) in shards:
            out.delete(f"{folder}/{name}".lstrip("/"))


def count_rejects(reports: list[ShardReport]) -> dict[str, int]:
    """How many inputs were refused, by reason, the most frequent first."""
    rejects: Counter[str] = Counter()
    for report in reports:
        rejects.update(report.rejects)
    return dict(rejects.most_common())


def open_shard_set(folder: Folder) -> ShardSet:
    """Read `dataset.json`. Raises FileNotFoundError if there is none, ValueError if it is of another format."""
    if not folder.exists(DATASET):
        raise FileNotFoundError(f"no finished shard set at {folder.uri}: it has no {DATASET}")
    try:
        value = folder.read_json(DATASET)
        version = value.pop("format_version")
        if version == FORMAT_VERSION:
            value.pop("counts")
            value.pop("seal", None)  # for `verify`
            value["tars"] = [TarStats(**tar) for tar in value["tars"]]
            return ShardSet(folder=folder, **value)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{folder.uri}/{DATASET} is damaged ({err}); restore it") from None
    raise ValueError(f"{folder.uri} is a shard set of format {version}; this version reads {FORMAT_VERSION}")
