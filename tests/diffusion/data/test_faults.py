"""Whatever lies in a source: every input is once a sample or a row of the rejects, and nothing half-made is seen."""

import hashlib
import io
import os
import shutil
import socket
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion.data.duplicates import find_duplicates, hash_inputs, num_buckets
from diffusion.data.images import MAX_BYTES, decode_png
from diffusion.data.plan import ShardConfig, make_plan, read_plan, source_fingerprint
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard, read_report
from diffusion.data.tar import read_headers
from diffusion.files import Folder

SIDE = 8
NOBODY = 65534
NUM_GOOD = 5
SAMPLE = "a sample"


def picture(width=SIDE, height=SIDE, kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def cut(kind):
    data = picture(64, 64, kind)
    return data[: len(data) // 2]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, pixels=b"\0"):
    """A PNG that says to be of this size: 1 bit grey."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rest = (*chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(rest)


def jpeg_that_says(width, height):
    data = picture(16, 16, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_that_says(width, height):
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (width - 1).to_bytes(3, "little")
    canvas += (height - 1).to_bytes(3, "little")
    still = picture(16, 16, "WEBP")[12:]
    frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + still
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_that_says(width, height):
    data = picture(16, 16, "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


HOLLOW = png(10_000, 10_000, pixels=bytes(10_000 * 1_251))  # 12 KB, whole, and 100 million pixels
TEXT_BOMB = png(SIDE, SIDE, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64_000_000))), pixels=bytes(2 * SIDE))
PROFILE_BOMB = png(SIDE, SIDE, chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(64_000_000))), pixels=bytes(2 * SIDE))

BAD = {
    "cut.png": (cut("PNG"), "undecodable"),
    "cut.jpg": (cut("JPEG"), "undecodable"),
    "cut.webp": (cut("WEBP"), "undecodable"),
    "cut.gif": (cut("GIF"), "undecodable"),
    "cut.bmp": (cut("BMP"), "undecodable"),
    "cut in its header.png": (picture()[:20], "undecodable"),
    "cut in its header.jpg": (picture(kind="JPEG")[:20], "unknown_format"),
    "one byte.png": (b"\x89", "unknown_format"),
    "empty.png": (b"", "unknown_format"),
    "empty.jpg": (b"", "unknown_format"),
    "text.png": (b"this is no picture", "unknown_format"),
    "page.jpg": (b"<!doctype html><title>404</title>", "unknown_format"),
    "zeros.png": (bytes(4096), "unknown_format"),
    "of no size.png": (png(0, 0), "unknown_format"),
    "notes.txt": (b"and does not say so", "not_an_image_name"),
    "picture": (picture(), "not_an_image_name"),
    "bomb.png": (png(60_000, 60_000), "too_large"),
    "hollow.png": (HOLLOW, "too_large"),
    "as wide as can be said.png": (png(2**31 - 1, 2**31 - 1), "too_large"),
    "bomb.jpg": (jpeg_that_says(65_500, 65_500), "too_large"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + picture(kind="GIF")[10:], "too_large"),
    "bomb.webp": (webp_that_says(16_383, 16_383), "too_large"),
    "bomb.bmp": (bmp_that_says(50_000, 50_000), "too_large"),
}
LONGEST = "ä" * 125 + "x.png"  # 255 bytes, the most that a disk takes
GOOD = {
    "a PNG.jpg": picture(seed=1),
    "a JPEG.png": picture(kind="JPEG", seed=2),
    "a GIF.webp": picture(kind="GIF", seed=3),
    "dot.png": picture(1, 1),
    "ribbon.png": picture(20_000, 1),
    "tower.png": picture(1, 20_000),
    "ribbon.jpg": picture(20_000, 1, "JPEG"),
    "stem.png": picture(seed=4),
    "stem.jpg": picture(kind="JPEG", seed=5),
    "stem.PNG": picture(seed=6),
    "stem": b"",
    "a.b.c.png": picture(seed=7),
    "png.png.png": picture(seed=8),
    "ä.png": picture(seed=9),
    "a\u0308.png": picture(seed=10),  # the same to the eye
    "\u202egnp.png": picture(seed=11),
    "😀.png": picture(seed=12),
    " with spaces .png": picture(seed=13),
    "new\nline.png": picture(seed=14),
    "tab\tand\x01bell\x07.png": picture(seed=15),
    "quote'\"`$(id)\\;&|<>.png": picture(seed=16),
    "-rf.png": picture(seed=17),
    "%2e%2e%2fup.png": picture(seed=18),
    "a?b#c%20d.png": picture(seed=19),
    "s3:\\\\bucket.png": picture(seed=20),
    LONGEST: picture(seed=21),
}
GOOD_REASONS = {"stem": "not_an_image_name"}


@pytest.fixture
def source(tmp_path):
    """A folder with a few good pictures, for the set to be more than nothing."""
    folder = tmp_path / "source"
    folder.mkdir()
    for index in range(NUM_GOOD):
        (folder / f"good-{index}.png").write_bytes(picture(seed=100 + index))
    return folder


def config_of(source, **options):
    defaults = {"image_size": SIDE, "samples_per_shard": 64, "val_fraction": 0.0, "max_reject_fraction": 1.0}
    return ShardConfig(source=(str(source),), **{**defaults, **options})


def finish(config, out):
    """All that is missing of a set, as `ddpm shard` makes it when it is called again."""
    plan = read_plan(out) or make_plan(config, out)
    return commit_plan(plan, [read_report(out, shard) or make_shard(plan, shard, out) for shard in plan.shards], out)


def table(shards, name):
    folder = Path(shards.folder.path) / f"{name}.parquet"
    return pq.read_table(folder).to_pylist() if folder.exists() else []


def fates(shards):
    """What became of every input: a list, for each name, of "a sample" or the reason why not."""
    found = {}
    for row in table(shards, "manifest"):
        found.setdefault(row["source"], []).append(SAMPLE)
    for row in table(shards, "rejects"):
        assert row["detail"]
        found.setdefault(row["source"], []).append(row["reason"])
    return found


def once(expected):
    return {name: [fate] for name, fate in expected.items()}


def expected_of(source, fate):
    return once({**{f"good-{index}.png": SAMPLE for index in range(NUM_GOOD)}, **fate})


def check_records(shards, source):
    """Every row of the manifest is true of the tars and of the source, and the tars hold nothing else."""
    held, rows = {}, table(shards, "manifest")
    for tar in shards.tars:
        data = shards.folder.read(tar.name)
        held.update({member.name: member.data(data) for member in read_headers(data)})

        assert (hashlib.sha256(data).hexdigest(), len(data)) == (tar.sha256, tar.num_bytes)
    images = {name: data for name, data in held.items() if name.endswith(".png")}

    assert {f"{row['key']}.png": row["sha256"] for row in rows} == {
        name: hashlib.sha256(data).hexdigest() for name, data in images.items()
    }
    assert len(rows) == len(images) == sum(tar.num_samples for tar in shards.tars)
    assert all(decode_png(data).shape == (SIDE, SIDE, 3) for data in images.values())
    for row in rows:
        label = -1 if "/" not in row["source"] else shards.classes.index(row["source"].split("/")[0])

        assert row["source_sha256"] == hashlib.sha256((source / row["source"]).read_bytes()).hexdigest()
        assert row["label"] == label
        assert held.get(f"{row['key']}.cls") == (str(label).encode() if label >= 0 else None)
    assert shards.rejects == Counter(row["reason"] for row in table(shards, "rejects"))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_a_row_of_the_rejects_and_the_others_are_samples(name, source, tmp_path):
    content, reason = BAD[name]
    (source / name).write_bytes(content)
    shards = finish(config_of(source), Folder(tmp_path / "out"))

    assert fates(shards) == expected_of(source, {name: reason})
    check_records(shards, source)


@pytest.mark.parametrize("bomb", [TEXT_BOMB, PROFILE_BOMB], ids=["text", "profile"])
def test_what_is_hidden_beside_the_pixels_is_a_sample_or_a_reject_like_all_else(bomb, source, tmp_path):
    (source / "bomb.png").write_bytes(bomb)
    shards = finish(config_of(source), Folder(tmp_path / "out"))

    assert len(bomb) < 100_000
    assert fates(shards).keys() == expected_of(source, {"bomb.png": ""}).keys()
    assert all(len(found) == 1 for found in fates(shards).values())
    check_records(shards, source)


@pytest.mark.parametrize("name", [name for name in GOOD if name not in GOOD_REASONS])
def test_a_picture_of_any_name_and_shape_is_a_sample(name, source, tmp_path):
    (source / name).write_bytes(GOOD[name])
    shards = finish(config_of(source), Folder(tmp_path / "out"))

    assert fates(shards) == expected_of(source, {name: SAMPLE})
    check_records(shards, source)


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_all_of_it_at_once_in_classes_of_any_name_is_recorded_input_by_input(encoding, tmp_path):
    source, expected = tmp_path / "source", {}
    for label in ("cat", "a.b.c", "ä 😀\nx.png", "#?%20", "y" * 255):
        (source / label).mkdir(parents=True)
        for name, (content, reason) in BAD.items():
            (source / label / name).write_bytes(content)
            expected[f"{label}/{name}"] = reason
        for name, content in GOOD.items():
            (source / label / name).write_bytes(content)
            expected[f"{label}/{name}"] = GOOD_REASONS.get(name, SAMPLE)
    shards = finish(config_of(source, val_fraction=0.3, encoding=encoding), Folder(tmp_path / "out"))

    assert len(shards.tars) > 4
    assert fates(shards) == once(expected)
    if encoding == "png":
        check_records(shards, source)


def test_a_file_too_large_to_read_is_refused_by_its_size_alone(source, tmp_path):
    with (source / "large.png").open("wb") as file:
        file.write(picture())
        file.truncate(MAX_BYTES + 1)
    shards = finish(config_of(source), Folder(tmp_path / "out"))

    assert fates(shards) == expected_of(source, {"large.png": "too_large"})


@pytest.mark.parametrize(
    ("option", "name", "fate"),
    [
        ({"min_side": 2}, "ribbon.png", "too_small"),
        ({"min_side": 2}, "dot.png", "too_small"),
        ({"min_side": 1}, "dot.png", SAMPLE),
        ({"max_aspect": 19_999}, "ribbon.png", "too_elongated"),
        ({"max_aspect": 19_999}, "tower.png", "too_elongated"),
        ({"max_aspect": 20_000}, "ribbon.jpg", SAMPLE),
        ({"fit": "pad"}, "ribbon.png", SAMPLE),
        ({"fit": "pad"}, "tower.png", SAMPLE),
        ({"fit": "pad"}, "dot.png", SAMPLE),
    ],
)
def test_filters_and_fits_hold_for_the_thinnest_and_the_smallest(option, name, fate, source, tmp_path):
    (source / name).write_bytes(GOOD[name])
    shards = finish(config_of(source, **option), Folder(tmp_path / "out"))

    assert fates(shards) == expected_of(source, {name: fate})
    check_records(shards, source)


def link_to_nothing(path):
    path.symlink_to("nowhere")


def link_to_itself(path):
    path.symlink_to(path.name)


def link_in_a_circle(path):
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def link_to_its_folder(path):
    path.symlink_to(path.parent)


def link_to_a_long_name(path):
    path.symlink_to("x" * 300)


def link_through_a_file(path):
    path.symlink_to("good-0.png/inside.png")


def pipe(path):
    os.mkfifo(path)


def socket_file(path):
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def device(path):
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero: never ends
    except OSError as err:
        pytest.skip(f"no device can be made here: {err}")


NO_FILES = [
    link_to_nothing, link_to_itself, link_in_a_circle, link_to_its_folder, link_to_a_long_name, link_through_a_file,
    pipe, socket_file, device,
]  # fmt: skip


@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_what_is_no_file_is_refused_and_never_waited_for(make, source, tmp_path):
    make(source / "odd.png")
    shards = finish(config_of(source), Folder(tmp_path / "out"))
    extra = {"other": "not_an_image_name"} if make is link_in_a_circle else {}

    assert fates(shards) == expected_of(source, {"odd.png": "unreadable", **extra})
    check_records(shards, source)


def test_a_link_to_a_picture_is_a_picture(source, tmp_path):
    (tmp_path / "elsewhere").write_bytes(picture(seed=1))
    (source / "link.png").symlink_to(tmp_path / "elsewhere")
    shards = finish(config_of(source), Folder(tmp_path / "out"))

    assert fates(shards) == expected_of(source, {"link.png": SAMPLE})
    check_records(shards, source)


def test_two_folders_that_link_to_each_other_do_not_multiply_their_pictures(tmp_path):
    for name, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "a.png").write_bytes(picture())
        (tmp_path / "source" / name / "friends").symlink_to(tmp_path / "source" / other)
    shards = finish(config_of(tmp_path / "source"), Folder(tmp_path / "out"))
    samples = [name for name, fate in fates(shards).items() if fate == [SAMPLE]]

    assert sorted(samples) == ["cat/a.png", "cat/friends/a.png", "dog/a.png", "dog/friends/a.png"]


MEMBERS = [
    "x.parquet/0", "../x.png", "../../z.png", "/abs/y.png", "a/../../b.png", "./here.png", "b.tar/c.png",
    "inner.zip/d.png", "new\nline.png", "ä 😀.png", "back\\slash.png", "twice.png", "twice.png", "C:\\x.png",
    "//net/share.png", "y" * 240 + "/" + "z" * 200 + ".png", "%2e%2e/q.png",
]  # fmt: skip


def write_archive(path, kind):
    """An archive of a picture for each of MEMBERS, in a format of tar or as a zip."""
    contents = [(name, picture(seed=seed)) for seed, name in enumerate(MEMBERS)]
    if kind == "zip":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:  # of a name twice
            for name, data in contents:
                archive.writestr(name, data)
        return
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in contents:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, "zip"], ids=["gnu", "pax", "zip"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_names_in_an_archive_are_only_names_and_every_member_is_recorded_once(is_folder, kind, tmp_path):
    archive = tmp_path / "source" / ("a.zip" if kind == "zip" else "a.tar")
    archive.parent.mkdir()
    write_archive(archive, kind)
    shards = finish(config_of(archive.parent if is_folder else archive), Folder(tmp_path / "out"))
    pictures = {hashlib.sha256(picture(seed=seed)).hexdigest(): name for seed, name in enumerate(MEMBERS)}
    taken = [pictures[row["source_sha256"]] for row in table(shards, "manifest")]

    assert sorted([*taken, "x.parquet/0"]) == sorted(MEMBERS)
    assert all(len(found) == 1 for found in fates(shards).values())
    assert [row["reason"] for row in table(shards, "rejects")] == ["not_an_image_name"]
    assert all(pictures[row["source_sha256"]].strip("/") in row["source"] for row in table(shards, "manifest"))
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@contextmanager
def as_nobody(*writable):
    """Without root's right to read everything; in a folder that nobody may reach, unlike pytest's own."""
    if os.geteuid() != 0:
        yield
        return
    for path in writable:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(source):
    """A folder that everybody may enter, with the source and an empty place for a set."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(source, Path(folder) / "source")
        (Path(folder) / "out").mkdir()
        yield Path(folder)


def test_a_file_that_may_not_be_read_is_refused(public):
    source, out = public / "source", public / "out"
    (source / "secret.png").write_bytes(picture())
    (source / "secret.png").chmod(0)
    with as_nobody(out):
        shards = finish(config_of(source), Folder(out))

    assert fates(shards) == expected_of(source, {"secret.png": "unreadable"})
    check_records(shards, source)


def test_a_link_into_a_folder_that_may_not_be_entered_is_refused(public):
    source, out = public / "source", public / "out"
    (public / "shut").mkdir()
    (public / "shut" / "a.png").write_bytes(picture())
    (public / "shut").chmod(0)
    (source / "link.png").symlink_to(public / "shut" / "a.png")
    with as_nobody(out):
        shards = finish(config_of(source), Folder(out))

    assert fates(shards) == expected_of(source, {"link.png": "unreadable"})


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_listed_ends_the_job_before_it_begins_and_is_named(mode, public):
    source, out = public / "source", public / "out"
    shutil.rmtree(source)
    for name in ("open", "shut"):
        (source / name).mkdir(parents=True)
        (source / name / "a.png").write_bytes(picture())
    (source / "shut").chmod(mode)
    with as_nobody(out), pytest.raises(PermissionError, match="shut"):
        finish(config_of(source), Folder(out))

    assert read_plan(Folder(out)) is None
    assert not (out / "dataset.json").exists()


def removed(path):
    path.unlink()


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def rewritten(path):
    path.write_bytes(picture(seed=77))


def rewritten_as_text(path):
    path.write_text("gone")


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


def replaced_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_loop(path):
    path.unlink()
    path.symlink_to(path.name)


CHANGES = {
    removed: "unreadable",
    emptied: "unknown_format",
    truncated: "undecodable",
    rewritten: SAMPLE,
    rewritten_as_text: "unknown_format",
    replaced_by_a_folder: "unreadable",
    replaced_by_a_pipe: "unreadable",
    replaced_by_a_loop: "unreadable",
}


@pytest.mark.parametrize("dedupe", [False, True], ids=["plain", "dedupe"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_input_that_changes_after_the_plan_is_taken_as_it_now_is(change, dedupe, source, tmp_path):
    out, config = Folder(tmp_path / "out"), config_of(source, dedupe=dedupe)
    plan = make_plan(config, out)
    if dedupe:
        for shard in plan.shards:
            hash_inputs(plan, shard, out)
        for bucket in range(num_buckets(plan)):
            find_duplicates(plan, bucket, out)
    change(source / "good-2.png")
    shards = finish(config, out)

    assert fates(shards) == expected_of(source, {"good-2.png": CHANGES[change]})
    check_records(shards, source)


@pytest.mark.parametrize("change", [removed, emptied, truncated, rewritten], ids=lambda change: change.__name__)
def test_a_set_whose_source_changed_while_it_was_made_is_known_to_be_older(change, source, tmp_path):
    out, config = Folder(tmp_path / "out"), config_of(source)
    make_plan(config, out)
    change(source / "good-2.png")
    shards = finish(config, out)

    assert source_fingerprint(config.open_source().blocks()) != shards.source_fingerprint


def test_a_file_that_is_added_after_the_plan_is_not_in_the_set_and_the_set_knows_that_it_is_older(source, tmp_path):
    out, config = Folder(tmp_path / "out"), config_of(source)
    make_plan(config, out)
    (source / "a new one.png").write_bytes(picture())
    shards = finish(config, out)

    assert fates(shards) == expected_of(source, {})
    assert source_fingerprint(config.open_source().blocks()) != shards.source_fingerprint


def test_a_class_that_is_removed_after_the_plan_is_refused_file_by_file(tmp_path):
    source, out = tmp_path / "source", Folder(tmp_path / "out")
    for name in ("cat", "dog"):
        (source / name).mkdir(parents=True)
        (source / name / "a.png").write_bytes(picture())
    make_plan(config_of(source), out)
    shutil.rmtree(source / "cat")
    (source / "cat").touch()
    shards = finish(config_of(source), out)

    assert fates(shards) == once({"cat/a.png": "unreadable", "dog/a.png": SAMPLE})
    assert shards.classes == ["cat", "dog"]


def test_a_source_that_is_gone_ends_the_job_and_makes_no_rejects(source, tmp_path):
    out = Folder(tmp_path / "out")
    make_plan(config_of(source), out)
    source.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"there is no.*{source}"):
        finish(config_of(source), out)
    (tmp_path / "moved").rename(source)

    assert out.names("rejects.parquet") == []
    assert fates(finish(config_of(source), out)) == expected_of(source, {})


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_half_made(found, whole):
    assert "dataset.json" not in found
    assert not [name for name in found if name.endswith(".tmp")]
    for name, data in found.items():
        assert data == whole[name] or name.startswith("plan/blocks-"), name


@pytest.fixture
def larger_source(tmp_path):
    """Of as many shards as it takes for something to be done when the disk is full; and the set that it makes."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "larger" / name).mkdir(parents=True)
        for index in range(70):
            (tmp_path / "larger" / name / f"{index}.png").write_bytes(picture(seed=1000 * label + index))
        (tmp_path / "larger" / name / "bad.png").touch()
    config = config_of(tmp_path / "larger", val_fraction=0.3)
    shards = finish(config, Folder(tmp_path / "unhindered"))
    return config, shards.digest, files_of(tmp_path / "unhindered")


def fill(disk, limits, larger_source):
    """Make the set on a disk of each of these limits in turn; what was raised where it was too small."""
    (place, limit), (config, digest, whole), said = disk, larger_source, []
    for number, option in enumerate(limits):
        limit(option)
        out = Folder(place / f"set-{number}")
        try:
            finish(config, out)
        except OSError as err:
            said.append(str(err))
            check_nothing_half_made(files_of(Path(out.path)), whole)
        limit("size=64m,nr_inodes=100000")

        assert finish(config, out).digest == digest
        assert files_of(Path(out.path)) == whole
        shutil.rmtree(out.path)
    return said


def test_a_full_disk_ends_the_job_with_nothing_half_made_and_with_room_the_set_is_the_same(disk, larger_source):
    size = sum(-(-len(data) // 4096) * 4096 for data in larger_source[2].values())
    limits = [f"size={pages * 4096}" for pages in range(1, size // 4096 + 1, size // 4096 // 20)]
    said = fill(disk, limits, larger_source)

    assert len(said) >= 19
    assert all("No space left on device" in line for line in said)


def test_a_disk_that_takes_no_more_files_ends_the_job_with_nothing_half_made(disk, larger_source):
    limits = [f"nr_inodes={count}" for count in range(2, len(larger_source[2]) + 4)]
    said = fill(disk, limits, larger_source)

    assert len(said) >= len(larger_source[2])
    assert all("No space left on device" in line for line in said)


def test_the_rejects_of_a_job_that_failed_for_them_can_be_read_and_a_higher_limit_takes_the_rest(source, tmp_path):
    for index in range(NUM_GOOD):
        (source / f"bad-{index}.png").touch()
    out = Folder(tmp_path / "out")
    with pytest.raises(ValueError, match=r"5 of 10 images were refused \(unknown_format 5\)"):
        finish(config_of(source, max_reject_fraction=0.4), out)

    assert not out.exists("dataset.json")
    assert len(pq.read_table(f"{out.path}/rejects.parquet")) == NUM_GOOD
