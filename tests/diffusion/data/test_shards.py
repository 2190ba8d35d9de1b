import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.images import decode_png
from diffusion.data.plan import ShardConfig, make_plan, read_plan
from diffusion.data.shard_set import commit_plan, open_shard_set
from diffusion.data.shards import make_shard, read_report, split_of
from diffusion.data.tar import read_headers
from diffusion.files import Folder

NUM_PICTURES = 150
CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_pictures):
    """Two classes of pictures, some of them twice, and four files that are none."""
    folder = tmp_path_factory.mktemp("source")
    for label, name in enumerate(CLASSES):
        write_pictures(folder / name, NUM_PICTURES // 2, seed=label)
    for index in range(20):
        shutil.copy(folder / "cat" / f"{index:04d}.png", folder / "dog" / f"same-{index:04d}.png")
    (folder / "cat" / "empty.png").touch()
    (folder / "cat" / "text.png").write_text("this is no picture")
    (folder / "dog" / "cut.png").write_bytes((folder / "dog" / "0000.png").read_bytes()[:100])
    (folder / "dog" / "notes.txt").write_text("nor is this, and it does not say so")
    return folder


@pytest.fixture(scope="module")
def config(source):
    return ShardConfig(
        source=(str(source),), image_size=8, samples_per_shard=64, val_fraction=0.3, max_reject_fraction=0.1
    )


@pytest.fixture(scope="module")
def shard_set(config, tmp_path_factory):
    return made(config, Folder(tmp_path_factory.mktemp("set")))


def made(config, out, order=lambda shards: shards):
    plan = make_plan(config, out)
    reports = [make_shard(plan, shard, out) for shard in order(list(plan.shards))]
    return commit_plan(plan, sorted(reports, key=lambda report: report.shard), out)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(shard_set):
    return pq.read_table(f"{shard_set.folder.path}/manifest.parquet").to_pylist()


def rejects(shard_set):
    return pq.read_table(f"{shard_set.folder.path}/rejects.parquet").to_pylist()


def test_shards_made_in_another_order_are_the_same_bytes(config, tmp_path):
    forwards = made(config, Folder(tmp_path / "forwards"))
    backwards = made(config, Folder(tmp_path / "backwards"), order=lambda shards: shards[::-1])

    assert len(forwards.tars) > 4
    assert forwards.digest == backwards.digest
    assert files_of(tmp_path / "forwards") == files_of(tmp_path / "backwards")


def test_a_shard_made_twice_is_the_same_bytes(config, tmp_path):
    out = Folder(tmp_path)
    plan = make_plan(config, out)
    first = make_shard(plan, 1, out)
    before = files_of(tmp_path)

    assert make_shard(plan, 1, out) == first
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("option", [{"seed": 1}, {"image_size": 4}, {"channels": 1}, {"val_fraction": 0.6}])
def test_other_settings_make_another_digest(option, config, shard_set, tmp_path):
    other = ShardConfig(**{**shard_set.config, "source": config.source, **option})

    assert made(other, Folder(tmp_path)).digest != shard_set.digest


def test_every_input_is_a_sample_or_a_reject(source, shard_set):
    inputs = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    samples = [row["source"] for row in manifest(shard_set)]
    refused = [row["source"] for row in rejects(shard_set)]

    assert sorted(samples + refused) == inputs
    assert len(samples) == NUM_PICTURES + 20 == shard_set.num_samples("train") + shard_set.num_samples("val")


def test_every_reject_is_recorded_with_its_reason(shard_set):
    assert {row["source"]: row["reason"] for row in rejects(shard_set)} == {
        "cat/empty.png": "unknown_format",
        "cat/text.png": "unknown_format",
        "dog/cut.png": "undecodable",
        "dog/notes.txt": "not_an_image_name",
    }
    assert all(row["detail"] for row in rejects(shard_set))
    assert shard_set.rejects == {"unknown_format": 2, "undecodable": 1, "not_an_image_name": 1}


def test_equal_pictures_land_on_the_same_split(shard_set):
    splits = {}
    for row in manifest(shard_set):
        splits.setdefault(row["source_sha256"], []).append(row["split"])
    twins = [found for found in splits.values() if len(found) > 1]

    assert len(twins) == 20
    assert all(len(set(found)) == 1 for found in twins)
    assert {found[0] for found in twins} == {"train", "val"}


def test_the_manifest_points_at_every_picture_in_its_tar(source, shard_set):
    for tar in shard_set.tars:
        data = shard_set.folder.read(tar.name)
        for row in [row for row in manifest(shard_set) if (row["split"], row["shard"]) == (tar.split, tar.shard)]:
            image = data[row["offset"] : row["offset"] + row["num_bytes"]]

            assert hashlib.sha256(image).hexdigest() == row["sha256"]
            assert decode_png(image).shape == (row["height"], row["width"], 3) == (8, 8, 3)
            assert hashlib.sha256((source / row["source"]).read_bytes()).hexdigest() == row["source_sha256"]
            assert row["label"] == CLASSES.index(row["source"].split("/")[0])


def test_the_manifest_lists_the_samples_of_a_tar_in_its_order(shard_set):
    for tar in shard_set.tars:
        names = [member.name for member in read_headers(shard_set.folder.read(tar.name))]
        keys = shard_set.manifest(tar, ["key"])["key"].to_pylist()

        assert [name for name in names if name.endswith(".png")] == [f"{key}.png" for key in keys]
        assert sorted(names) == sorted(f"{key}.{kind}" for key in keys for kind in ("cls", "png"))
        assert len(keys) == tar.num_samples


def test_every_key_is_there_once_and_says_the_shard(shard_set):
    rows = manifest(shard_set)

    assert len({row["key"] for row in rows}) == len(rows)
    assert all(row["key"] == f"{row['shard']:06d}-{row['index']:06d}" for row in rows)


def test_the_pictures_are_those_of_the_source(source, shard_set, write_pictures, tmp_path):
    drawn = {
        f"{name}/{k}": v for i, name in enumerate(CLASSES) for k, v in write_pictures(tmp_path, 75, seed=i).items()
    }
    for row in manifest(shard_set):
        if row["source"] in drawn:
            image = shard_set.folder.read_range(
                f"{row['split']}-{row['shard']:06d}.tar", row["offset"], row["num_bytes"]
            )

            assert np.array_equal(decode_png(image), drawn[row["source"]])


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_whole_set(shard_set):
    urls = [f"{shard_set.folder.path}/{tar.name}" for tar in shard_set.tars]
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")}
    rows = {row["key"]: row for row in manifest(shard_set)}

    assert read.keys() == rows.keys()
    assert {key: sample["cls"] for key, sample in read.items()} == {key: row["label"] for key, row in rows.items()}
    assert {sample["png"].shape for sample in read.values()} == {(8, 8, 3)}


def test_without_classes_there_are_no_label_files(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "source", 10)
    shards = make_set(tmp_path / "source", tmp_path / "set", val_fraction=0)
    (tar,) = shards.tars

    assert all(member.name.endswith(".png") for member in read_headers(shards.folder.read(tar.name)))
    assert shards.manifest(tar, ["label"])["label"].to_pylist() == [-1] * 10


def test_an_interrupted_run_continues_with_the_shards_that_are_done(config, shard_set, tmp_path):
    out = Folder(tmp_path)
    plan = make_plan(config, out)
    before = [make_shard(plan, shard, out) for shard in (0, 2)]
    resumed = read_plan(out)
    reports = [read_report(out, shard) or make_shard(resumed, shard, out) for shard in resumed.shards]

    assert [reports[0], reports[2]] == before
    assert commit_plan(resumed, reports, out).digest == shard_set.digest
    assert files_of(tmp_path) == files_of(Path(shard_set.folder.path))


def test_a_shard_that_was_cut_off_is_not_done_and_is_made_again_whole(config, shard_set, tmp_path):
    out = Folder(tmp_path)
    plan = make_plan(config, out)
    make_shard(plan, 0, out)
    whole = files_of(tmp_path)
    out.delete("plan/shard-000000.json")
    (tmp_path / "train-000000.tar").write_bytes(whole["train-000000.tar"][:1000])

    assert read_report(out, 0) is None
    make_shard(plan, 0, out)
    assert files_of(tmp_path) == whole


def test_a_shard_of_nothing_but_rejects_has_no_tar(tmp_path):
    (tmp_path / "source").mkdir()
    for index in range(70):
        (tmp_path / "source" / f"{index}.png").touch()
    out = Folder(tmp_path / "out")
    plan = make_plan(ShardConfig(source=(str(tmp_path / "source"),), samples_per_shard=64), out)
    reports = [make_shard(plan, shard, out) for shard in range(2)]

    assert [report.tars for report in reports] == [[], []]
    assert sum(report.rejects["unknown_format"] for report in reports) == 70
    assert not [name for name in out.names() if name.endswith(".tar")]


def test_a_picture_that_vanished_after_the_plan_is_a_reject(write_pictures, tmp_path):
    write_pictures(tmp_path / "source", 3)
    out = Folder(tmp_path / "out")
    plan = make_plan(ShardConfig(source=(str(tmp_path / "source"),), val_fraction=0), out)
    (tmp_path / "source" / "0001.png").unlink()
    report = make_shard(plan, 0, out)

    assert (report.num_samples, report.rejects) == (2, {"unreadable": 1})


@given(st.binary(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_for_validation_never_moves_a_picture_back_to_training(content, one, other):
    small, large = sorted([one, other])
    sha256 = hashlib.sha256(content).hexdigest()

    assert split_of(sha256, large) == "val" or split_of(sha256, small) == "train"
    assert split_of(sha256, 0) == "train"
    assert split_of(sha256, 1) == "val"


@pytest.mark.parametrize("val_fraction", [0.01, 0.1, 0.5])
def test_validation_gets_its_share(val_fraction):
    num_pictures = 10_000
    names = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(num_pictures)]
    found = sum(split_of(name, val_fraction) == "val" for name in names)

    assert abs(found - val_fraction * num_pictures) < 5 * (num_pictures * val_fraction * (1 - val_fraction)) ** 0.5


def test_the_set_opens_as_it_was_committed(shard_set):
    assert open_shard_set(shard_set.folder).tars == shard_set.tars
