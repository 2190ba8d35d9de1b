"""Making a shard set of tars that others wrote, where they are: only the manifest and `dataset.json` are added.

The tars are all `*.tar` directly in the folder, by name; a shard is a tar. What webdataset reads as a sample is one:
consecutive members of one key. It must have one picture, and may have a label in `cls`; other members are left alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from .codecs import PILLOW_FORMATS, open_image, refusing
from .images import MODES, ORIENTATION, Rejected, decode, in_words
from .layout import MANIFEST_SCHEMA, part_name
from .seal import manifest_parts
from .shard_set import DATASET, Header, ShardSet, commit, open_shard_set
from .shards import ShardReport, TarStats
from .tar import Sample, group_samples, read_headers, walk_tar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..files import Folder

CONFIG = {"adopted": True}
UNFINISHED = "plan/plan.json"
"""what `ddpm shard` leaves where it was ended before its set was whole"""
HELD_OUT = ("val", "test")
MAX_CLASSES = 1_000_000


class Kind(NamedTuple):
    """What the pictures of a set have in common."""

    side: int
    channels: int

    def __str__(self) -> str:
        return in_words((self.side, self.side, self.channels))


class TarFile(NamedTuple):
    """A tar that is there to be adopted."""

    shard: int
    """its place among them"""
    name: str
    stamp: str
    """what changes when its content may have"""


@dataclass(frozen=True)
class Adopted:
    """What came of one tar: its part of the manifest is written, or it is refused."""

    file: TarFile
    kind: Kind
    """which its pictures had to be of"""
    stats: TarStats | None = None
    num_classes: int = 0
    part_sha256: str = ""
    refusal: str = ""

    @property
    def num_samples(self) -> int:
        """In the tar."""
        return self.stats.num_samples if self.stats is not None else 0


def list_tars(folder: Folder) -> list[TarFile]:
    """The tars in a folder. Raises ValueError if there are none, or they are a shard set that is being made."""
    found = [info for info in folder.entries() if info.type == fs.FileType.File and info.base_name.endswith(".tar")]
    if not found:
        raise ValueError(f"there are no tars to index in {folder.uri}")
    if folder.exists(UNFINISHED) and not folder.exists(DATASET):
        raise ValueError(
            f"{folder.uri} holds a shard set that `ddpm shard` has not finished: run that again, "
            f"or delete the folder plan/ there to index the tars as they are"
        )
    return [TarFile(nth, info.base_name, f"{info.size}/{info.mtime_ns}") for nth, info in enumerate(found)]


def adopted_set(folder: Folder, tars: list[TarFile]) -> ShardSet | None:
    """The set that these tars already are, if they are one.

    Raises ValueError if there is a set that `ddpm shard` made, or the tars have changed: what is committed is not
    overwritten by what may be damage.
    """
    if not folder.exists(DATASET):
        return None
    shards = open_shard_set(folder)
    if shards.config != CONFIG:
        raise ValueError(f"{folder.uri} is already a shard set ({shards.digest}), and not one of adopted tars")
    if shards.source_fingerprint != _fingerprint(tars):
        raise ValueError(
            f"the tars in {folder.uri} are not those that were indexed, by their names, sizes and times: `ddpm verify` "
            f"tells what has changed; to index them as they are now, delete {DATASET} there and run the same command"
        )
    return shards


def first_kind(folder: Folder, tars: list[TarFile]) -> Kind:
    """Size and channels of the first picture of all. Raises ValueError if it cannot be used, or there is none."""
    for tar in tars:
        with folder.fs.open_input_file(folder.at(tar.name)) as stream:
            try:
                for sample in group_samples(walk_tar(stream)):
                    extension, picture = sample.picture
                    return _kind_of(sample, folder.read_range(tar.name, picture.offset, picture.num_bytes), extension)
            except ValueError as err:
                raise ValueError(_refusal(folder, tar, err)) from None
    raise ValueError(f"there are no samples in the tars of {folder.uri}")


def adopt_tar(folder: Folder, tar: TarFile, kind: Kind) -> Adopted:
    """Write one tar's part of the manifest, and its report last. The whole tar is in memory meanwhile.

    Pictures are looked at as far as their header: `verify --deep` decodes them.
    """
    data = folder.read(tar.name)
    try:
        rows = _rows(data, tar, kind)
    except ValueError as err:
        return Adopted(tar, kind, refusal=_refusal(folder, tar, err))
    part_sha256 = folder.write_table(
        part_name("manifest", tar.shard), pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    )
    sha256 = hashlib.sha256(data).hexdigest()
    stats = TarStats(tar.name, tar.shard, _split_of(tar.name), len(rows), len(data), sha256)
    num_classes = max((row["label"] for row in rows), default=-1) + 1
    adopted = Adopted(tar, kind, stats, num_classes, part_sha256)
    folder.write_json(_report_name(tar.shard), asdict(adopted))
    return adopted


def read_adopted(folder: Folder, tar: TarFile, kind: Kind) -> Adopted | None:
    """The report of a tar that is already done, if it is there, and of the tar and of its rows as they are now."""
    if not folder.exists(_report_name(tar.shard)) or not folder.exists(part_name("manifest", tar.shard)):
        return None
    saved = folder.read_json(_report_name(tar.shard))
    saved |= {"file": TarFile(*saved["file"]), "kind": Kind(*saved["kind"]), "stats": TarStats(**saved["stats"])}
    report = Adopted(**saved)
    same = (report.file, report.kind, report.part_sha256) == (tar, kind, _part_sha256(folder, tar))
    return report if same else None


def commit_adopted(folder: Folder, tars: list[TarFile], kind: Kind, reports: Iterable[Adopted]) -> ShardSet:
    """Write `dataset.json`, after removing what an earlier index left of tars that are no more."""
    reports = list(reports)
    parts = {part_name("manifest", tar.shard) for tar in tars}
    for name in manifest_parts(folder):
        if name not in parts:
            folder.delete(name)
    header = Header(
        image_size=kind.side,
        channels=kind.channels,
        classes=[str(label) for label in range(max(report.num_classes for report in reports))],
        config=CONFIG,
        config_fingerprint=hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()[:32],
        source_fingerprint=_fingerprint(tars),
    )
    done = [
        ShardReport(report.file.shard, [report.stats], {}, report.part_sha256)
        for report in reports
        if report.stats is not None
    ]
    return commit(header, done, folder)


def _rows(data: bytes, tar: TarFile, kind: Kind) -> list[dict[str, Any]]:
    """The manifest's rows of a tar. Raises ValueError, naming the sample, for the first that cannot be adopted."""
    rows = []
    seen: set[str] = set()
    for index, sample in enumerate(group_samples(read_headers(data))):
        if sample.key in seen:
            raise ValueError(f"the members of sample {sample.key} do not follow each other")
        seen.add(sample.key)
        rows.append(_row(sample, index, data, tar, kind))
    return rows


def _row(sample: Sample, index: int, data: bytes, tar: TarFile, kind: Kind) -> dict[str, Any]:
    extension, picture = sample.picture
    content, label = picture.data(data), sample.label(data)
    if label >= MAX_CLASSES:
        raise ValueError(f"sample {sample.key} has the label {label}, and labels must be below {MAX_CLASSES}")
    if (found := _kind_of(sample, content, extension)) != kind:
        raise ValueError(f"sample {sample.key} is {found}, where the first picture of the set is {kind}")
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "key": sample.key,
        "split": _split_of(tar.name),
        "shard": tar.shard,
        "index": index,
        "offset": picture.offset,
        "num_bytes": picture.num_bytes,
        "label": label,
        "width": kind.side,
        "height": kind.side,
        "source": f"{tar.name}/{picture.name}",
        "source_sha256": sha256,
        "sha256": sha256,
    }


def _kind_of(sample: Sample, content: bytes, extension: str) -> Kind:
    """By its header. Raises ValueError for what cannot be trained on as it is."""
    try:
        if extension == "npy":
            height, width, channels = decode(content, extension).shape  # a view: costs no more than the header
        else:
            width, height, channels = _size_of(content, extension)
    except Rejected as err:
        raise ValueError(f"sample {sample.key} has a picture that cannot be read ({err.detail})") from None
    if width != height:
        raise ValueError(f"sample {sample.key} is {width}x{height}, and pictures must be square")
    return Kind(width, channels)


def _size_of(content: bytes, extension: str) -> tuple[int, int, int]:
    """Width, height and channels by the file's header. Raises Rejected for what `decode` would not read, or turned."""
    with refusing("undecodable"), open_image(content, (PILLOW_FORMATS[extension],)) as image:
        channels = next((channels for channels, mode in MODES.items() if mode == image.mode), 0)
        if not channels:
            raise Rejected("undecodable", f"its mode is {image.mode}, and must be {' or '.join(MODES.values())}")
        may_be_turned = "exif" in image.info or "xmp" in image.info  # asked first: a PNG is decoded for the answer
        if may_be_turned and image.getexif().get(ORIENTATION, 1) != 1:
            raise Rejected("undecodable", "its EXIF says that it is to be turned or mirrored, which is not done here")
        return image.width, image.height, channels


def _refusal(folder: Folder, tar: TarFile, err: ValueError) -> str:
    what = f"cannot adopt {(folder / tar.name).uri}: {err}"
    if str(err).startswith("tar "):
        return f"{what}; restore it from a copy, or move it elsewhere"
    return f"{what}; to make shards of these pictures instead: ddpm shard --source {folder.uri}"


def _split_of(name: str) -> str:
    return "val" if name.startswith(HELD_OUT) else "train"


def _fingerprint(tars: list[TarFile]) -> str:
    return hashlib.sha256(json.dumps(tars).encode()).hexdigest()[:32]


def _part_sha256(folder: Folder, tar: TarFile) -> str:
    return hashlib.sha256(folder.read(part_name("manifest", tar.shard))).hexdigest()


def _report_name(shard: int) -> str:
    return f"plan/adopted-{shard:06d}.json"
