import hashlib
import json
import shutil
from bisect import bisect
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.plan import Plan, ShardConfig, make_plan
from diffusion.data.shard_set import SPREAD_OVER, commit_plan, count_rejects, digest_of, open_shard_set
from diffusion.data.shards import ShardReport, TarStats, make_shard
from diffusion.files import Folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_pictures, make_set):
    folder = tmp_path_factory.mktemp("finished")
    write_pictures(folder / "source", 100)
    return make_set(folder / "source", folder / "set", val_fraction=0.2)


@pytest.fixture
def copy_of_set(finished, tmp_path):
    """The set in a folder of its own, to be damaged."""
    shutil.copytree(finished.folder.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def damaged_source(tmp_path, write_pictures):
    """Forty names of pictures, four of them of no picture, and a text."""
    write_pictures(tmp_path / "source", 40)
    for index in range(3):
        (tmp_path / "source" / f"{index:04d}.png").write_bytes(b"")
    path = tmp_path / "source" / "0003.png"
    path.write_bytes(path.read_bytes()[:80])
    (tmp_path / "source" / "notes.txt").write_text("not a picture, and does not claim to be")
    return tmp_path / "source"


def tar(name, sha256="0" * 64, split="train", num_samples=1):
    return TarStats(name, 0, split, num_samples, 10_240, sha256)


def plan_of(num_images, max_reject_fraction):
    config = ShardConfig(max_reject_fraction=max_reject_fraction)
    return Plan(
        config=config, source_fingerprint="", classes=[], channels=1,
        num_blocks=1, num_items=num_images, num_images=num_images,
    )  # fmt: skip


def test_without_dataset_json_there_is_no_set(copy_of_set):
    (copy_of_set / "dataset.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"no finished shard set at .*copy: it has no dataset\.json"):
        open_shard_set(Folder(copy_of_set))


def test_a_set_of_another_format_version_is_refused(copy_of_set):
    value = json.loads((copy_of_set / "dataset.json").read_text())
    (copy_of_set / "dataset.json").write_text(json.dumps({**value, "format_version": 99}))

    with pytest.raises(ValueError, match="is a shard set of format 99; this version reads 1"):
        open_shard_set(Folder(copy_of_set))


def test_the_set_says_what_every_tar_holds(finished):
    for stats in finished.tars:
        data = finished.folder.read(stats.name)

        assert (stats.num_bytes, stats.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert finished.manifest(stats, ["key"]).num_rows == stats.num_samples


def test_every_sample_is_counted_in_its_split(finished):
    saved = finished.folder.read_json("dataset.json")

    assert finished.num_samples("train") + finished.num_samples("val") == 100
    assert 0 < finished.num_samples("val") < 50
    assert saved["counts"] == {split: finished.num_samples(split) for split in ("train", "val")}


def test_a_set_that_was_moved_opens_where_it_is(finished, copy_of_set):
    moved = open_shard_set(Folder(copy_of_set))

    assert (moved.digest, moved.tars) == (finished.digest, finished.tars)
    assert moved.checked_tar(moved.tars[0]) == (copy_of_set / moved.tars[0].name).read_bytes()


@pytest.mark.parametrize("position", [0, 600, -1])
def test_a_flipped_byte_in_a_tar_is_found(position, copy_of_set):
    shards = open_shard_set(Folder(copy_of_set))
    path = copy_of_set / shards.tars[0].name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)

    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        shards.checked_tar(shards.tars[0])


def test_too_many_rejects_fail_with_their_counts_and_leave_the_records(damaged_source, make_set, tmp_path):
    with pytest.raises(ValueError, match=r"4 of 40 images were refused .*unknown_format 3.*max_reject_fraction=0.09"):
        make_set(damaged_source, tmp_path / "set", max_reject_fraction=0.09)

    assert (tmp_path / "set" / "rejects.parquet").is_dir()
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_as_many_rejects_as_are_allowed_are_allowed(damaged_source, make_set, tmp_path):
    shards = make_set(damaged_source, tmp_path / "set", max_reject_fraction=0.1)

    assert shards.num_samples("train") + shards.num_samples("val") == 40 - 4


def test_a_file_that_does_not_claim_to_be_a_picture_is_recorded_and_not_held_against_the_source(
    write_pictures, make_set, tmp_path
):
    write_pictures(tmp_path / "source", 5)
    for index in range(20):
        (tmp_path / "source" / f"{index}.txt").touch()
    shards = make_set(tmp_path / "source", tmp_path / "set", max_reject_fraction=0)

    assert shards.rejects == {"not_an_image_name": 20}


def test_a_share_of_rejects_equal_to_the_limit_is_allowed(tmp_path):
    refused = []
    for num_rejects in range(101):
        report = ShardReport(0, [tar("train-000000.tar")], {"undecodable": num_rejects})
        try:
            commit_plan(plan_of(100, num_rejects / 100), [report], Folder(tmp_path))
        except ValueError:
            refused.append(num_rejects)

    assert refused == []


def test_a_set_with_nothing_to_train_on_is_refused(write_pictures, tmp_path):
    write_pictures(tmp_path / "source", 3)
    out = Folder(tmp_path / "out")
    plan = make_plan(ShardConfig(source=(str(tmp_path / "source"),), val_fraction=0.9999999), out)

    with pytest.raises(ValueError, match=r"val_fraction=0\.9999999 left no image to train on, of 3"):
        commit_plan(plan, [make_shard(plan, 0, out)], out)

    assert not out.exists("dataset.json")


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_the_tars(hashes, random):
    tars = [tar(name, sha256) for name, sha256 in hashes.items()]
    shuffled = random.sample(tars, len(tars))

    assert digest_of(shuffled) == digest_of(tars)
    assert len(digest_of(tars)) == 32


def test_the_digest_is_the_sha256_over_sorted_names_and_hashes():
    lines = b"train-000000.tar aa\nval-000000.tar bb\n"

    assert (
        digest_of([tar("val-000000.tar", "bb"), tar("train-000000.tar", "aa")])
        == (hashlib.sha256(lines).hexdigest()[:32])
    )


def test_rejects_are_added_up_over_shards_the_most_frequent_first():
    reports = [ShardReport(0, [], {"a": 1, "b": 2}), ShardReport(1, [], {"b": 1, "c": 2})]

    assert list(count_rejects(reports).items()) == [("b", 3), ("c", 2), ("a", 1)]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(SPREAD_OVER, 500))
def test_a_spread_comes_from_all_over_the_set_and_is_not_too_large(finished, sizes, num):
    tars = [tar(f"train-{number:06d}.tar", num_samples=size) for number, size in enumerate(sizes)]
    positions = replace(finished, tars=tars).spread("train", num)
    of_tar = [bisect(list(accumulate(sizes)), position) for position in positions]

    assert positions == sorted(set(positions))
    assert positions[-1] < sum(sizes)
    assert len(positions) <= num
    assert of_tar[0] == 0
    assert np.diff([*sorted(set(of_tar)), len(sizes)]).max() <= -(-len(sizes) // SPREAD_OVER)
