"""Whether a shard set is what was committed: everything that can be computed anew is, and compared.

What `dataset.json` says of itself comes first (its seal), then the files that it does not know, then shard by shard:
the manifest's part, the tars' bytes, and each picture and label against its row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from .images import Rejected, decode, in_words
from .layout import SPLITS, part_name
from .seal import manifest_parts, seal_of
from .shard_set import DATASET, digest_of, open_shard_set
from .tar import RECORD, Member, Sample, group_samples, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..files import Folder
    from .shard_set import ShardSet
    from .shards import TarStats

    Row = dict[str, Any]

RESTORE = "restore it from a copy, or delete the set and make it again"
ADOPT_AGAIN = f"restore it from a copy or, if it is meant to be so, delete {DATASET} and index the tars again"
ELSEWHERE = "a byte outside of pictures, labels and padding is another one: in a header, or in another member"


@dataclass(frozen=True)
class Difference:
    """Something that is not as committed."""

    shard: str
    """the name of the tar that it is counted and ordered under; empty for dataset.json"""
    file: str
    what: str
    sha256: str = ""
    """of a tar that holds something else"""
    remedy: str = RESTORE


@dataclass(frozen=True)
class Claim:
    """What `dataset.json` says of one shard, and of every picture: the work of one task."""

    number: int
    tars: list[TarStats]
    part_sha256: str
    image_size: int
    channels: int

    @property
    def part(self) -> str:
        """The name of the shard's part of the manifest."""
        return part_name("manifest", self.number)

    @property
    def num_samples(self) -> int:
        """In all its tars."""
        return sum(tar.num_samples for tar in self.tars)


def check_dataset(folder: Folder) -> list[Difference]:
    """What is wrong with `dataset.json` itself. Raises FileNotFoundError if there is none."""
    try:
        shards = open_shard_set(folder)
        saved = folder.read(DATASET)
        value = json.loads(saved)
        what = _fault_of_counts(shards, value) or _fault_of_seal(saved, value)
    except ValueError as err:
        what = str(err)
    except TypeError as err:  # a list where there should be a number, and the like
        what = f"is damaged ({err})"
    return [Difference("", DATASET, what)] if what else []


def _fault_of_counts(shards: ShardSet, value: dict[str, Any]) -> str:
    counts = {split: shards.num_samples(split) for split in SPLITS}
    if counts != value["counts"]:
        return f"was edited: its counts are {value['counts']}, and those of its tars {counts}"
    if (digest := digest_of(shards.tars)) != shards.digest:
        return f"was edited: its digest is {shards.digest}, and that of its tars {digest}"
    return ""


def _fault_of_seal(saved: bytes, value: dict[str, Any]) -> str:
    if "seal" not in value:
        return "has no seal, so nothing vouches for it and the manifest: it was edited, or made by an earlier version"
    if value["seal"] != seal_of(value):
        return "was edited: what it says does not have the sha256 that is its seal"
    if saved != (json.dumps(value, indent=2, sort_keys=True) + "\n").encode():
        return "was edited: it says the same as when it was committed, in other bytes"
    return ""


def check_listing(shards: ShardSet) -> list[Difference]:
    """Tars, and parts of the manifest, that are in the folder and that `dataset.json` does not know."""
    known = {tar.name for tar in shards.tars}
    tars = [name for name in shards.folder.names() if name.endswith(".tar") and name not in known]
    parts = [name for name in manifest_parts(shards.folder) if name not in shards.parts]
    what, remedy = f"is in the folder, and {DATASET} does not know it", "move it elsewhere"
    return [Difference(name, name, what, remedy=remedy) for name in (*tars, *parts)]


def claims(shards: ShardSet) -> list[Claim]:
    """The work that there is, in the order of shard numbers."""
    parts = {int(name.rpartition("-")[2].removesuffix(".parquet")): sha256 for name, sha256 in shards.parts.items()}
    tars: dict[int, list[TarStats]] = {number: [] for number in parts}
    for tar in shards.tars:
        tars.setdefault(tar.shard, []).append(tar)
    return [
        Claim(number, tars[number], parts.get(number, ""), shards.image_size, shards.channels)
        for number in sorted(tars)
    ]


def check_shard(folder: Folder, claim: Claim, deep: bool = False) -> list[Difference]:
    """The first thing wrong with each file of a shard; `deep` decodes the pictures. One tar in memory at a time."""
    rows, what = _read_part(folder, claim)
    found = [Difference(claim.tars[0].name if claim.tars else claim.part, claim.part, what)] if what else []
    for tar in claim.tars:
        mine = None if rows is None else [row for row in rows if row["split"] == tar.split]
        if (difference := _check_tar(folder, claim, tar, mine, deep)) is not None:
            found.append(difference)
    return found


def explain(shards: ShardSet, differences: list[Difference]) -> str:
    """The first difference in the order of tars, as one line: where, what, what to do, and how many shards differ."""
    first = min(differences, key=lambda difference: difference.shard)
    twin = next((tar.name for tar in shards.tars if tar.sha256 == first.sha256 and tar.name != first.shard), None)
    what = f"holds the bytes of {twin}" if twin else first.what
    adopted = shards.config.get("adopted", False) and first.remedy == RESTORE
    num_different = len({difference.shard for difference in differences})
    of_all = (
        f"{num_different} shard{'s differ' if num_different > 1 else ' differs'}, {len(shards.tars)} were committed"
    )
    return f"{(shards.folder / first.file).uri} {what}; {ADOPT_AGAIN if adopted else first.remedy} ({of_all})"


def _read_part(folder: Folder, claim: Claim) -> tuple[list[Row] | None, str]:
    """The manifest's rows if they are as committed, or else what is wrong: a changed Parquet file is not opened."""
    try:
        data = folder.read(claim.part)
    except FileNotFoundError:
        return None, "is missing"
    if hashlib.sha256(data).hexdigest() != claim.part_sha256:
        return None, f"was changed: it does not have the sha256 of {DATASET}"
    rows: list[Row] = pq.read_table(pa.BufferReader(data)).to_pylist()
    return rows, ""


def _check_tar(folder: Folder, claim: Claim, tar: TarStats, rows: list[Row] | None, deep: bool) -> Difference | None:
    try:
        data = folder.read(tar.name)
    except FileNotFoundError:
        return Difference(tar.name, tar.name, "is missing")
    sha256 = hashlib.sha256(data).hexdigest()
    if (sha256, len(data)) != (tar.sha256, tar.num_bytes):
        return Difference(tar.name, tar.name, _damage(data, claim, tar, rows), sha256)
    what = next(_disagreements(data, claim, tar, rows, deep), "") if rows is not None else ""
    return Difference(tar.name, tar.name, what) if what else None


def _disagreements(data: bytes, claim: Claim, tar: TarStats, rows: list[Row], deep: bool) -> Iterator[str]:
    """Where the manifest, or a picture, is not what the bytes that were committed say."""
    members, damage = _members(data)
    samples = list(group_samples(members))
    if damage:
        yield damage
    if not len(samples) == len(rows) == tar.num_samples:
        yield f"has {len(samples)} samples, and should have {tar.num_samples}; the manifest has {len(rows)}"
    for sample, row in zip(samples, rows, strict=False):
        yield from _faults_of_row(sample, row, data, claim)
        if deep:
            yield from _faults_of_picture(sample, data, claim)


def _damage(data: bytes, claim: Claim, tar: TarStats, rows: list[Row] | None) -> str:
    """What is wrong with bytes that are not those committed; the manifest's rows, if they can be had, tell where."""
    size = "" if len(data) == tar.num_bytes else f"has {len(data)} bytes instead of {tar.num_bytes}: "
    return f"was changed: {size}{next(_damages(data, claim, rows), ELSEWHERE)}"


def _damages(data: bytes, claim: Claim, rows: list[Row] | None) -> Iterator[str]:
    members, damage = _members(data)
    samples = list(group_samples(members))
    for nth, sample in enumerate(samples):
        if rows is not None and nth < len(rows):
            yield from _faults_of_row(sample, rows[nth], data, claim, whole=not damage or nth + 1 < len(samples))
        for _, member in sample.members:
            if (place := _first_set(data, member.offset + member.num_bytes, member.end)) >= 0:
                yield f"byte {place}, in the padding after {member.name}, is not zero"
    end = members[-1].end if members else 0
    if damage:
        yield f"{damage}{_at_sample(rows or [], end)}"
    elif rows is not None and len(samples) != len(rows):
        yield f"has {len(samples)} samples instead of {len(rows)}"
    while data[end : end + RECORD].strip(b"\0"):  # folders and links after the last file
        end += RECORD
    if (place := _first_set(data, end, len(data))) >= 0:
        yield f"byte {place}, in the padding after its end, is not zero"


def _faults_of_row(sample: Sample, row: Row, data: bytes, claim: Claim, whole: bool = True) -> Iterator[str]:
    """Where a sample in a tar is not what its row in the manifest says; one that is not whole may lack members."""
    try:
        _, picture = sample.picture
        found: Row = {
            "key": sample.key,
            "shard": claim.number,
            "offset": picture.offset,
            "num_bytes": picture.num_bytes,
            "width": claim.image_size,
            "height": claim.image_size,
            **({"label": sample.label(data)} if whole else {}),
        }
    except ValueError as err:
        if whole:
            yield str(err)
        return
    if sample.key == row["key"] and hashlib.sha256(picture.data(data)).hexdigest() != row["sha256"]:
        yield f"sample {row['key']}: its picture, at byte {picture.offset}, does not have the sha256 of the manifest"
    for name, value in found.items():
        if row[name] != value:
            yield f"sample {row['key']}, at byte {picture.offset}: its {name} is {value}, in the manifest {row[name]}"


def _faults_of_picture(sample: Sample, data: bytes, claim: Claim) -> Iterator[str]:
    """Whether it is one, of the size and channels that the set says."""
    extension, picture = sample.picture
    where = f"sample {sample.key}: its picture, at byte {picture.offset},"
    try:
        shape = decode(picture.data(data), extension).shape
    except Rejected as err:
        yield f"{where} cannot be decoded ({err.detail})"
        return
    wanted = (claim.image_size, claim.image_size, claim.channels)
    if shape != wanted:
        yield f"{where} is {in_words(shape)}, where the set's are {in_words(wanted)}"


def _members(data: bytes) -> tuple[list[Member], str]:
    """The files of an archive up to the first damage, and what that is."""
    members: list[Member] = []
    try:
        members.extend(read_headers(data))  # keeps what came before the error
    except ValueError as err:
        return members, str(err)
    return members, ""


def _at_sample(rows: list[Row], place: int) -> str:
    """Which sample a damaged header belongs to."""
    before = [row for row in rows if row["offset"] - RECORD <= place]
    if not before:
        return ""
    exactly = before[-1]["offset"] - RECORD == place
    return f" ({'at' if exactly else 'after the picture of'} sample {before[-1]['key']})"


def _first_set(data: bytes, start: int, stop: int) -> int:
    """The place of the first byte that is not zero; -1 if all are."""
    rest = data[start:stop].lstrip(b"\0")
    return min(stop, len(data)) - len(rest) if rest else -1
