import shutil

import pyarrow.parquet as pq
import pytest

from diffusion.data import duplicates
from diffusion.data.duplicates import find_duplicates, hash_inputs, num_buckets, num_hashed, read_duplicates
from diffusion.data.plan import ShardConfig, make_plan, read_block
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard
from diffusion.files import Folder

NUM_PICTURES = 130


@pytest.fixture
def source(tmp_path, write_pictures):
    """130 pictures of three classes' folders, of which 40 are the same as another, three of them three times."""
    for number, name in enumerate(("ant", "bee", "cat")):
        write_pictures(tmp_path / "source" / name, 30, seed=number)
    for index in range(37):
        twin = tmp_path / "source" / "cat" / f"twin-{index:04d}.png"
        shutil.copy(tmp_path / "source" / ("ant" if index < 30 else "bee") / f"{index % 30:04d}.png", twin)
    for index in range(3):
        shutil.copy(tmp_path / "source" / "ant" / f"{index:04d}.png", tmp_path / "source" / f"bee/third-{index}.png")
    (tmp_path / "source" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "source" / "bee" / "notes.txt").write_text("no picture")
    return tmp_path / "source"


def made(source, out, known=None, old=None, **options):
    settings = {"image_size": 8, "samples_per_shard": 64, "val_fraction": 0.2, "dedupe": True, **options}
    plan = make_plan(ShardConfig(source=(str(source),), **settings), out, known)
    if plan.config.dedupe:
        for shard in plan.shards:
            hash_inputs(plan, shard, out)
        for bucket in range(num_buckets(plan)):
            find_duplicates(plan, bucket, out)
    return commit_plan(plan, [make_shard(plan, shard, out) for shard in plan.shards], out, old)


def table(shards, name):
    return pq.read_table(f"{shards.folder.path}/{name}.parquet").to_pylist()


@pytest.mark.parametrize("bucket_items", [4_000_000, 10])
def test_of_equal_inputs_the_first_of_the_listing_stays(bucket_items, source, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BUCKET_ITEMS", bucket_items)
    shards = made(source, Folder(tmp_path / "set"))
    kept = {row["source"] for row in table(shards, "manifest")}
    dropped = {row["source"]: row["detail"] for row in table(shards, "rejects") if row["reason"] == "duplicate"}
    contents = {name: (source / name).read_bytes() for name in {*kept, *dropped}}

    assert len({contents[name] for name in kept}) == len(kept) == 90
    assert len(dropped) == 40
    assert {detail.removeprefix("the same bytes as ") for detail in dropped.values()} <= kept
    for name, detail in dropped.items():
        first = detail.removeprefix("the same bytes as ")
        assert contents[name] == contents[first]
        assert first == min(other for other in contents if contents[other] == contents[name])


def test_duplicates_are_not_held_against_the_source(source, tmp_path):
    shards = made(source, Folder(tmp_path / "set"), max_reject_fraction=0.0)

    assert shards.rejects == {"duplicate": 40, "not_an_image_name": 2}


def test_without_dedupe_every_picture_stays(source, tmp_path):
    shards = made(source, Folder(tmp_path / "set"), dedupe=False)

    assert shards.num_samples("train") + shards.num_samples("val") == NUM_PICTURES


def test_every_input_of_a_source_without_duplicates_stays(tmp_path, write_pictures):
    write_pictures(tmp_path / "source", 70)
    shards = made(tmp_path / "source", Folder(tmp_path / "set"))

    assert shards.num_samples("train") + shards.num_samples("val") == 70


def test_hashing_is_noted_when_it_is_done(source, tmp_path):
    out = Folder(tmp_path / "set")
    plan = make_plan(ShardConfig(source=(str(source),), samples_per_shard=64, dedupe=True), out)

    assert [num_hashed(out, shard) for shard in plan.shards] == [None] * len(plan.shards)
    assert [hash_inputs(plan, shard, out) for shard in plan.shards] == [num_hashed(out, shard) for shard in plan.shards]
    assert sum(num_hashed(out, shard) for shard in plan.shards) == NUM_PICTURES


def test_a_shard_is_told_of_its_own_duplicates_only(source, tmp_path):
    out = Folder(tmp_path / "set")
    made(source, out)
    plan = make_plan(ShardConfig(source=(str(source),), samples_per_shard=64, dedupe=True), Folder(tmp_path / "plan"))
    told = {block: read_duplicates(plan, [block], out) for block in range(plan.num_blocks)}

    assert sum(map(len, told.values())) == 40
    for block, found in told.items():
        assert {place >> 32 for place in found} <= {block}
        assert all(place & (2**32 - 1) < len(read_block(out, block)) for place in found)
