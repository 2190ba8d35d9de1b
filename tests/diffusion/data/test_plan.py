import os
import weakref
from dataclasses import dataclass, fields, replace

import pytest

from diffusion.data.plan import (
    BLOCKS_PER_FILE,
    Listing,
    ShardConfig,
    make_plan,
    read_block,
    read_plan,
    source_fingerprint,
    spill,
)
from diffusion.data.sources import Item, in_blocks, open_source
from diffusion.files import Folder

CHANGED = {
    "source": ("elsewhere",),
    "image_column": "picture",
    "label_column": "class",
    "image_size": 64,
    "fit": "pad",
    "encoding": "jpeg",
    "quality": 50,
    "min_side": 8,
    "max_aspect": 3.0,
    "dedupe": True,
    "channels": 1,
    "samples_per_shard": 128,
    "val_fraction": 0.2,
    "max_reject_fraction": 0.5,
    "seed": 1,
}


@pytest.fixture
def list_files(tmp_path):
    """A function that makes a source of empty files, and its config."""

    def make(num_files, **options):
        source = tmp_path / "source"
        source.mkdir()
        for index in range(num_files):
            (source / f"{index:04d}.png").touch()
        return ShardConfig(source=(str(source),), **options)

    return make


def contents(folder):
    """The bytes of every file under a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fingerprint(source):
    return source_fingerprint(open_source([str(source)]).blocks())


@pytest.mark.parametrize("samples_per_shard", [1, 64, 128, 4096])
@pytest.mark.parametrize("num_files", [0, 1, 63, 64, 65, 200])
def test_every_input_is_in_exactly_one_block_of_exactly_one_shard(num_files, samples_per_shard, list_files, tmp_path):
    out = Folder(tmp_path / "out")
    plan = make_plan(list_files(num_files, samples_per_shard=samples_per_shard), out)
    shards = [plan.blocks(shard) for shard in plan.shards]
    items = [(item.source, item.label) for blocks in shards for block in blocks for item in read_block(out, block)]

    assert all(shards)  # no shard is empty
    assert sorted(block for blocks in shards for block in blocks) == list(range(plan.num_blocks))
    assert sorted(items) == [(f"{index:04d}.png", None) for index in range(num_files)]
    assert plan.num_items == num_files


def test_a_listing_longer_than_one_plan_file_reads_back_whole(tmp_path):
    out, num_blocks = Folder(tmp_path), BLOCKS_PER_FILE + 2
    listing = [Item(f"{i}.png", None if i % 3 else str(i), "", bool(i % 2), (i, i + 1)) for i in range(3 * num_blocks)]
    blocks = [listing[3 * number : 3 * number + 3] for number in range(num_blocks)]
    spill(iter(blocks), out)

    assert len(out.names("plan")) == 2
    assert [read_block(out, number) for number in range(num_blocks)] == blocks


def test_a_listing_is_spilled_while_it_is_made(tmp_path):
    """With all that it lists ever made kept alive, a listing of any length would fill the memory."""
    made, most = [], 0

    class Block(list):
        pass

    def listing():
        nonlocal most
        for number in range(100):
            block = Block(Item(f"{number}/{index}.png", None, "") for index in range(3))
            made.append(weakref.ref(block))
            most = max(most, sum(block() is not None for block in made))
            yield block

    spill(Listing().of(listing()), Folder(tmp_path))

    assert most <= 3


def test_the_same_source_has_the_same_plan(list_files, tmp_path):
    config = list_files(200)
    first, second = (make_plan(config, Folder(tmp_path / name)) for name in ("first", "second"))

    assert first == second
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_another_seed_lays_the_blocks_into_other_shards(list_files, tmp_path):
    config = list_files(1000, samples_per_shard=64)
    first = make_plan(config, Folder(tmp_path / "first"))
    second = make_plan(replace(config, seed=1), Folder(tmp_path / "second"))

    assert [first.blocks(shard) for shard in range(16)] != [second.blocks(shard) for shard in range(16)]


def test_a_plan_reads_back_as_it_was_made(list_files, tmp_path):
    out = Folder(tmp_path / "out")
    plan = make_plan(list_files(70), out)

    assert read_plan(out) == plan


def test_a_listing_that_was_cut_off_is_not_a_plan(tmp_path):
    out = Folder(tmp_path)

    def listing():
        yield from in_blocks(Item(f"{index}.png", None, "") for index in range(70))
        raise OSError("the storage went away")

    with pytest.raises(OSError, match="the storage went away"):
        spill(listing(), out)

    assert read_plan(out) is None


def test_inputs_that_do_not_claim_to_be_pictures_are_listed_but_not_counted_as_such(list_files, tmp_path):
    config = list_files(3)
    (tmp_path / "source" / "notes.txt").touch()
    plan = make_plan(config, Folder(tmp_path / "out"))

    assert (plan.num_items, plan.num_images) == (4, 3)


def test_channels_are_those_of_the_source_unless_they_are_given(tmp_path):
    digits = [make_plan(ShardConfig(channels=channels), Folder(tmp_path)).channels for channels in (0, 3)]

    assert digits == [1, 3]


def grow(path):
    before = path.stat().st_mtime_ns
    path.write_bytes(b"longer")
    os.utime(path, ns=(before, before))


def touch_later(path):
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def rename(path):
    path.rename(path.with_name("renamed.png"))


@pytest.mark.parametrize("change", [grow, touch_later, rename, os.remove])
def test_a_file_of_another_size_time_or_name_is_another_source(change, list_files, tmp_path):
    list_files(3)
    before = fingerprint(tmp_path / "source")
    change(tmp_path / "source" / "0001.png")

    assert fingerprint(tmp_path / "source") != before


def test_a_file_in_another_class_is_another_source(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat" / "1.png").touch()
    before = fingerprint(tmp_path)
    (tmp_path / "cat" / "1.png").rename(tmp_path / "dog" / "1.png")

    assert fingerprint(tmp_path) != before


def test_an_untouched_source_keeps_its_fingerprint(list_files, tmp_path):
    list_files(100)

    assert fingerprint(tmp_path / "source") == fingerprint(tmp_path / "source")


@pytest.mark.parametrize("field", [field.name for field in fields(ShardConfig)])
def test_every_value_of_the_config_is_in_its_fingerprint(field):
    assert replace(ShardConfig(), **{field: CHANGED[field]}).fingerprint != ShardConfig().fingerprint


def test_what_a_subclass_adds_is_not_in_the_fingerprint():
    @dataclass(frozen=True, kw_only=True)
    class OnManyWorkers(ShardConfig):
        num_workers: int

    assert OnManyWorkers(num_workers=8).fingerprint == ShardConfig().fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"channels": 2}, r"channels must be 0 \(as the source\), 1 or 3, got 2"),
        ({"channels": 4}, r"channels must be 0 \(as the source\), 1 or 3, got 4"),
        ({"fit": "squash"}, "fit must be one of crop, pad, got 'squash'"),
        ({"encoding": "gif"}, "encoding must be one of png, jpeg, webp, npy, got 'gif'"),
        ({"quality": 0}, "quality must be 1 to 100, got 0"),
        ({"quality": 101}, "quality must be 1 to 100, got 101"),
        ({"min_side": -1}, "min_side must be at least 0, got -1"),
        ({"max_aspect": 0.5}, "max_aspect must be at least 1, or 0 for any, got 0.5"),
        ({"max_aspect": float("nan")}, "max_aspect must be at least 1, or 0 for any, got nan"),
        ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, got 0"),
        ({"val_fraction": -0.1}, r"val_fraction must lie in \[0, 1\), got -0.1"),
        ({"val_fraction": 1}, r"val_fraction must lie in \[0, 1\), got 1"),
        ({"max_reject_fraction": 1.1}, r"max_reject_fraction must lie in \[0, 1\], got 1.1"),
        ({"max_reject_fraction": float("nan")}, r"max_reject_fraction must lie in \[0, 1\], got nan"),
    ],
)
def test_an_impossible_config_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        ShardConfig(**options)
