import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from diffusion.data.adopt import adopt_tar, adopted_set, commit_adopted, first_kind, list_tars, read_adopted
from diffusion.data.images import encode
from diffusion.data.layout import MANIFEST_SCHEMA
from diffusion.data.loader import SampleReader
from diffusion.data.shard_set import open_shard_set
from diffusion.data.tar import read_headers
from diffusion.data.verify import check_dataset, check_listing, check_shard, claims, explain
from diffusion.files import Folder

SIDE = 8


def pixels_of(seed, channels=3, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


def png(seed, **options):
    return encode(pixels_of(seed, **options), "png")


def image_bytes(image, form, **options):
    out = io.BytesIO()
    image.save(out, format=form, **options)
    return out.getvalue()


def write_members(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def foreign(tmp_path):
    """What stock webdataset writes: 25 pictures in three tars, one of them held out."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    numbers = iter(range(25))
    for name, count in [("imagenet-train-0.tar", 10), ("imagenet-train-1.tar", 10), ("val-0.tar", 5)]:
        with webdataset.TarWriter(str(folder / name)) as writer:
            for number in (next(numbers) for _ in range(count)):
                sample = {"__key__": f"n{number:04d}", "png": pixels_of(number), "cls": number % 7}
                writer.write({**sample, "json": {"number": number}})
    return folder


def index(folder):
    """What `ddpm index` does, one tar after the other."""
    folder = Folder(folder)
    tars = list_tars(folder)
    if (shards := adopted_set(folder, tars)) is not None:
        return shards
    kind = first_kind(folder, tars)
    reports = [read_adopted(folder, tar, kind) or adopt_tar(folder, tar, kind) for tar in tars]
    for report in reports:
        if report.refusal:
            raise ValueError(report.refusal)
    return commit_adopted(folder, tars, kind, reports)


def verify(folder, deep=False):
    folder = Folder(folder)
    if found := check_dataset(folder):
        return found
    shards = open_shard_set(folder)
    return [*check_listing(shards), *(d for claim in claims(shards) for d in check_shard(folder, claim, deep))]


def bytes_of(folder, pattern="*.tar"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_tars_are_not_touched_and_the_set_verifies(foreign):
    before = bytes_of(foreign)
    shards = index(foreign)

    assert bytes_of(foreign) == before
    assert [(tar.name, tar.shard, tar.split, tar.num_samples) for tar in shards.tars] == [
        ("imagenet-train-0.tar", 0, "train", 10),
        ("imagenet-train-1.tar", 1, "train", 10),
        ("val-0.tar", 2, "val", 5),
    ]
    assert (shards.image_size, shards.channels, shards.classes) == (8, 3, [str(label) for label in range(7)])
    assert verify(foreign, deep=True) == []


def test_the_loader_reads_the_pictures_and_labels_that_webdataset_wrote(foreign):
    shards = index(foreign)
    for split, numbers in [("train", range(20)), ("val", range(20, 25))]:
        images, labels = SampleReader(shards, split).read(range(len(numbers)))

        assert np.array_equal(images.transpose(0, 2, 3, 1), [pixels_of(number) for number in numbers])
        assert labels.tolist() == [number % 7 for number in numbers]


def test_the_manifest_says_where_every_picture_is(foreign):
    index(foreign)
    table = pq.read_table(foreign / "manifest.parquet")
    rows = table.to_pylist()

    assert table.schema.equals(MANIFEST_SCHEMA)
    for number, row in enumerate(rows):
        name = row["source"].partition("/")[0]
        data = (foreign / name).read_bytes()[row["offset"] : row["offset"] + row["num_bytes"]]

        assert row["key"] == f"n{number:04d}"
        assert row["source"] == f"{name}/n{number:04d}.png"
        assert row["source_sha256"] == row["sha256"]
        assert np.array_equal(Image.open(io.BytesIO(data)), pixels_of(number))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_encoding_and_tar_format_is_read_back_as_it_is(form, tmp_path):
    smooth = np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None, None] * 8, SIDE, axis=1).repeat(3, axis=2)
    folder = "long/" * 25 if form != tarfile.USTAR_FORMAT else ""
    members = [(f"{folder}a.png", encode(smooth, "png")), (f"{folder}b.JPG", encode(smooth, "jpeg"))]
    members += [(f"{folder}c.webp", encode(smooth, "webp")), (f"{folder}d.npy", encode(smooth, "npy"))]
    members += [(f"{folder}e.jpeg", encode(smooth, "jpeg"))]
    write_members(tmp_path / "train.tar", members, form)
    shards = index(tmp_path)
    images, labels = SampleReader(shards).read(range(5))

    assert verify(tmp_path, deep=True) == []
    assert np.abs(images.transpose(0, 2, 3, 1).astype(int) - smooth).max() < 8
    assert np.array_equal(images[[0, 3]].transpose(0, 2, 3, 1), [smooth, smooth])
    assert labels.tolist() == [-1] * 5


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_has_the_channels_of_its_pictures(channels, tmp_path):
    write_members(tmp_path / "a.tar", [("0.png", png(0, channels=channels)), ("1.png", png(1, channels=channels))])
    shards = index(tmp_path)

    assert shards.channels == channels
    assert SampleReader(shards).read([0, 1])[0].shape == (2, channels, SIDE, SIDE)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([None, None], [], [-1, -1]),
        ([b"2", None], ["0", "1", "2"], [2, -1]),
        ([b"0\n", b" 1"], ["0", "1"], [0, 1]),
    ],
)
def test_labels_may_be_there_or_not(labels, classes, expected, tmp_path):
    members = []
    for number, label in enumerate(labels):
        members += [(f"{number}.png", png(number))] + ([(f"{number}.cls", label)] if label is not None else [])
    write_members(tmp_path / "a.tar", members)
    shards = index(tmp_path)

    assert shards.classes == classes
    assert SampleReader(shards).read([0, 1])[1].tolist() == expected
    assert verify(tmp_path) == []


def test_classes_go_up_to_the_largest_label_of_any_tar(tmp_path):
    for name, label in [("a.tar", b"1"), ("b.tar", b"4"), ("c.tar", b"2")]:
        write_members(tmp_path / name, [("0.png", png(0)), ("0.cls", label)])

    assert index(tmp_path).classes == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("val-0", "val"), ("validation-0", "val"), ("test-7", "val"), ("train-0", "train"), ("x-val-0", "train")],
)
def test_names_say_what_is_held_out(name, split, tmp_path):
    write_members(tmp_path / f"{name}.tar", [("0.png", png(0))])

    assert [tar.split for tar in index(tmp_path).tars] == [split]


TURNED = Image.Exif()
TURNED[0x0112] = 6
GREY = Image.fromarray(pixels_of(0)[:, :, 0])
FLOATS = io.BytesIO()
np.save(FLOATS, np.zeros((SIDE, SIDE, 3)))
GOOD = ("0.png", png(0))
REFUSED = {
    "another size": ([GOOD, ("1.png", png(1, side=9))], "sample 1 is 9x9 in 3 channels, where .* is 8x8 in 3 channels"),
    "grey": ([GOOD, ("1.png", png(1, channels=1))], "sample 1 is 8x8 in 1 channel, where"),
    "not square": (
        [("1.png", encode(pixels_of(0)[:4], "png"))],
        r"sample 1 is 8x4, and pictures must be square; .*: ddpm shard --source /",
    ),
    "palette": ([GOOD, ("1.png", image_bytes(GREY.convert("P"), "PNG"))], "sample 1 has .*mode is P, and must be L or"),
    "alpha": ([("1.png", image_bytes(GREY.convert("RGBA"), "PNG"))], "sample 1 has .*mode is RGBA"),
    "cmyk": ([("1.jpg", image_bytes(GREY.convert("CMYK"), "JPEG"))], "sample 1 has .*mode is CMYK"),
    "turned": ([("1.jpg", image_bytes(GREY.convert("RGB"), "JPEG", exif=TURNED))], "sample 1 .*is to be turned"),
    "another format": ([("1.png", encode(pixels_of(0), "jpeg"))], "sample 1 has a picture that cannot be read"),
    "text": ([GOOD, ("1.png", b"text")], "sample 1 has a picture that cannot be read"),
    "floats": ([("1.npy", FLOATS.getvalue())], "sample 1 has .* cannot be read .*float64"),
    "no picture": ([GOOD, ("1.cls", b"1"), ("1.txt", b"")], "sample 1 has no picture, and must have one"),
    "two": ([GOOD, ("1.png", png(1)), ("1.jpg", b"")], "sample 1 has 2 pictures, and must have one"),
    "label": (
        [GOOD, ("1.png", png(1)), ("1.cls", b"cat")],
        "sample 1 has a label that is not one whole number: b'cat'",
    ),
    "large label": (
        [GOOD, ("1.png", png(1)), ("1.cls", b"10000000")],
        "sample 1 has the label 10000000, .* below 1000000",
    ),
    "apart": ([GOOD, ("1.png", png(1)), ("0.cls", b"1")], "sample 0 has no picture|sample 0 do not follow"),
    "twice": ([GOOD, ("1.png", png(1)), GOOD], "the members of sample 0 do not follow each other"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_trained_on_as_it_is_is_refused_with_its_tar_and_sample(why, tmp_path):
    members, message = REFUSED[why]
    write_members(tmp_path / "b.tar", members)

    with pytest.raises(ValueError, match=f"cannot adopt .*/b.tar: .*{message}") as refused:
        index(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "dataset.json").exists()


def test_all_tars_must_have_pictures_of_the_kind_of_the_first(tmp_path):
    write_members(tmp_path / "a.tar", [GOOD])
    write_members(tmp_path / "b.tar", [("5.png", png(5, side=16))])

    with pytest.raises(
        ValueError, match=r"b\.tar: sample 5 is 16x16 in 3 channels, where the first picture of the set"
    ):
        index(tmp_path)


@pytest.mark.parametrize("tar", ["imagenet-train-0.tar", "imagenet-train-1.tar"])
@pytest.mark.parametrize("keep", [0, 512, 700, 5000])
def test_a_tar_that_is_cut_is_not_adopted(tar, keep, foreign):
    (foreign / tar).write_bytes((foreign / tar).read_bytes()[:keep])

    with pytest.raises(ValueError, match=rf"cannot adopt .*/{tar}: tar is cut short .*; restore it from a copy"):
        index(foreign)


def test_a_tar_without_samples_may_stand_beside_others(foreign):
    write_members(foreign / "a.tar", [("README", b"nothing here")])
    shards = index(foreign)

    assert [tar.num_samples for tar in shards.tars] == [0, 10, 10, 5]
    assert verify(foreign, deep=True) == []
    assert np.array_equal(SampleReader(shards).read([0])[0][0].transpose(1, 2, 0), pixels_of(0))


def test_tars_without_any_sample_are_no_set(tmp_path):
    write_members(tmp_path / "a.tar", [("README", b"nothing here")])

    with pytest.raises(ValueError, match="there are no samples in the tars of"):
        index(tmp_path)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "x.tar").mkdir()])
def test_without_tars_there_is_nothing_to_index(make, tmp_path):
    make(tmp_path)

    with pytest.raises(ValueError, match="there are no tars to index in"):
        index(tmp_path)


def test_indexing_again_does_nothing(foreign):
    index(foreign)
    stamps = {path: path.stat().st_mtime_ns for path in foreign.rglob("*")}
    again = index(foreign)

    assert again.digest == open_shard_set(Folder(foreign)).digest
    assert {path: path.stat().st_mtime_ns for path in foreign.rglob("*")} == stamps


def change(folder):
    path = folder / "imagenet-train-1.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def add(folder):
    write_members(folder / "more.tar", [GOOD])


def take_away(folder):
    (folder / "val-0.tar").unlink()


@pytest.mark.parametrize("event", [change, add, take_away])
def test_changed_tars_are_indexed_anew_only_when_their_set_is_deleted(event, foreign):
    digest = index(foreign).digest
    event(foreign)
    with pytest.raises(ValueError, match=r"are not those that were indexed.*`ddpm verify` .*delete dataset\.json"):
        index(foreign)
    found = verify(foreign)
    (foreign / "dataset.json").unlink()
    shards = index(foreign)

    assert len(found) == 1
    assert shards.digest != digest
    assert len(shards.parts) == len(list((foreign / "manifest.parquet").iterdir())) == len(shards.tars)
    assert verify(foreign, deep=True) == []


def test_a_set_of_ours_is_not_adopted(make_set, write_pictures, tmp_path):
    write_pictures(tmp_path / "source", 30)
    make_set(tmp_path / "source", tmp_path / "set")
    with pytest.raises(ValueError, match=r"is already a shard set .* and not one of adopted tars"):
        index(tmp_path / "set")
    (tmp_path / "set/dataset.json").unlink()
    with pytest.raises(ValueError, match="holds a shard set that `ddpm shard` has not finished"):
        index(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/plan")

    assert index(tmp_path / "set").num_samples("train") + index(tmp_path / "set").num_samples("val") == 30


def adopt_only(folder, number):
    folder = Folder(folder)
    tars = list_tars(folder)
    return folder, tars, adopt_tar(folder, tars[number], first_kind(folder, tars))


def test_what_a_killed_index_has_done_is_taken_as_it_is(foreign):
    folder, tars, report = adopt_only(foreign, 1)

    assert read_adopted(folder, tars[1], report.kind) == report
    assert read_adopted(folder, tars[0], report.kind) is None


@pytest.mark.parametrize("damage", ["tar", "rows", "no rows", "another kind"])
def test_what_was_done_is_done_again_when_it_does_not_hold(damage, foreign):
    folder, _, report = adopt_only(foreign, 1)
    kind, part = report.kind, foreign / "manifest.parquet/part-000001.parquet"
    if damage == "tar":
        change(foreign)
    elif damage == "rows":
        part.write_bytes(part.read_bytes() + b"x")
    elif damage == "no rows":
        part.unlink()
    else:
        kind = kind._replace(side=9)

    assert read_adopted(folder, list_tars(folder)[1], kind) is None


def test_a_resumed_index_makes_the_same_bytes(foreign, tmp_path):
    shutil.copytree(foreign, tmp_path / "copy", copy_function=shutil.copy2)
    index(foreign)
    adopt_only(tmp_path / "copy", 2)
    index(tmp_path / "copy")

    assert bytes_of(foreign, "manifest.parquet/*") == bytes_of(tmp_path / "copy", "manifest.parquet/*")
    assert (foreign / "dataset.json").read_bytes() == (tmp_path / "copy/dataset.json").read_bytes()


def test_damage_to_an_adopted_set_comes_with_its_own_remedy(foreign):
    shards = index(foreign)
    member = next(m for m in read_headers((foreign / "val-0.tar").read_bytes()) if m.name.endswith(".json"))
    data = bytearray((foreign / "val-0.tar").read_bytes())
    data[member.offset] ^= 1
    (foreign / "val-0.tar").write_bytes(data)
    said = explain(shards, verify(foreign))

    assert "val-0.tar was changed: a byte outside of pictures, labels and padding is another one" in said
    assert "delete dataset.json and index the tars again (1 shard differs, 3 were committed)" in said


def test_dataset_json_has_all_that_it_has_for_our_own_sets(foreign, make_set, write_pictures, tmp_path):
    write_pictures(tmp_path / "source", 30)
    make_set(tmp_path / "source", tmp_path / "set")
    index(foreign)
    ours, theirs = (json.loads((folder / "dataset.json").read_text()) for folder in (tmp_path / "set", foreign))

    assert ours.keys() == theirs.keys()
    assert theirs["config"] == {"adopted": True}
    assert len(theirs["config_fingerprint"]) == len(theirs["source_fingerprint"]) == 32
