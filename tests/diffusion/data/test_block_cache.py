import os
import threading

import numpy as np
import pytest

from diffusion.data.block_cache import BlockCache
from diffusion.data.loader import LoadConfig, SampleReader, batches
from diffusion.data.order import OrderConfig
from diffusion.data.raw import RawReader
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

CONFIG = OrderConfig(seed=1, global_batch=16, num_lanes=4, shuffle_window=8)
NUM, BLOCK = 160, 8192


@pytest.fixture(scope="module")
def sets(store, write_pictures, make_set, tmp_path_factory):
    """The same set in the store and on a disk."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate("ab"):
        write_pictures(folder / name, NUM // 2, seed=seed)
    there = Folder(store) / "cached"
    return make_set(folder, there.uri, val_fraction=0), make_set(folder, tmp_path_factory.mktemp("set"), val_fraction=0)


@pytest.fixture
def there(sets):
    """The set in the store, put in order again after the test."""
    yield sets[0]
    for tar in sets[0].tars:
        sets[0].folder.write(tar.name, sets[1].folder.read(tar.name))


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def all_of(shards, cache):
    reader = RawReader(shards, cache=cache)
    return [reader.checked(position, raw).hex() for position, raw in reader.fetch(np.arange(NUM)).items()]


def test_batches_out_of_a_store_are_those_of_a_disk_with_a_cache_and_without(sets):
    runs = [
        list(batches(SampleReader(shards, config=config), CONFIG, 3, 14))
        for shards in sets
        for config in (LoadConfig(keep_decoded="off"), LoadConfig(block_cache_bytes=0))
    ]

    for run in runs[1:]:
        assert all(a.images.equal(b.images) and a.labels.equal(b.labels) for a, b in zip(run, runs[0], strict=True))


def test_a_set_in_a_store_is_cached_where_the_setting_says_and_one_on_a_disk_is_not(sets, tmp_path, cache_folder):
    for shards in sets:
        SampleReader(shards, config=LoadConfig(block_cache=str(tmp_path / shards.folder.name))).read([0])
    SampleReader(sets[0]).read([0])

    assert [len(files(tmp_path / shards.folder.name)) for shards in sets] == [1, 0]
    assert len(files(cache_folder)) == 1


def test_what_is_cached_is_not_asked_for_again_by_another_reader(there, tmp_path):
    expected = all_of(there, BlockCache(tmp_path, 1 << 30, BLOCK))
    for tar in there.tars:
        there.folder.delete(tar.name)

    assert all_of(there, BlockCache(tmp_path, 1 << 30, BLOCK)) == expected
    assert {path.stat().st_size for path in files(tmp_path)} >= {BLOCK}


def test_any_range_is_the_range_of_the_tar(sets, tmp_path):
    there, here = sets
    cache, tar, draw = BlockCache(tmp_path, 1 << 30, 4096), there.tars[0], np.random.default_rng(0)
    whole = here.folder.read(tar.name)
    for _ in range(60):
        start, stop = sorted(draw.integers(0, len(whole) + 1, 2).tolist())

        assert cache.read_range(there.folder, tar, start, stop - start) == whole[start:stop]
    assert cache.read_range(there.folder, tar, len(whole) - 5, 10) == whole[-5:]


def test_the_folder_stays_within_its_bytes_and_keeps_what_was_used_last(sets, tmp_path):
    there, _ = sets
    cache, tar = BlockCache(tmp_path, 4 * 1024, 1024), there.tars[0]
    for number in range(20):
        cache.read_range(there.folder, tar, 0, 1)  # the first block is in use all the time
        os.utime(cache._path(tar, 0), (2**31, 2**31))  # clocks of files are too coarse for a test
        cache.read_range(there.folder, tar, number * 1024, 1)

        assert sum(path.stat().st_size for path in files(tmp_path)) <= 4 * 1024
    assert cache._path(tar, 0).exists()
    assert cache._path(tar, 19).exists()
    assert len(files(tmp_path)) == 4


def test_blocks_that_are_used_are_the_last_to_be_dropped(sets, tmp_path):
    there, _ = sets
    cache, tar = BlockCache(tmp_path, 1 << 30, 1024), there.tars[0]
    for number in range(4):
        cache.read_range(there.folder, tar, number * 1024, 1)
        os.utime(cache._path(tar, number), (number, number))
    cache.read_range(there.folder, tar, 0, 1)  # the oldest, and now the newest
    cache.max_bytes = 2 * 1024
    cache._trim()

    assert sorted(path.name.rpartition("-")[2] for path in files(tmp_path)) == ["0", "3"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[:] = bytes(byte ^ 1 for byte in data)
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_block_is_fetched_once_for_all_samples_in_it(sets, tmp_path, monkeypatch):
    all_of(sets[0], BlockCache(tmp_path, 1 << 30, BLOCK))
    for path in files(tmp_path):
        flip(path)
    reads, read_range = [], Folder.read_range
    monkeypatch.setattr(Folder, "read_range", lambda self, *place: reads.append(place) or read_range(self, *place))
    all_of(sets[0], BlockCache(tmp_path, 1 << 30, BLOCK))

    assert 1 < len(reads) <= len(files(tmp_path))


@pytest.mark.parametrize("damage", [flip, shorten])
def test_a_damaged_block_is_fetched_once_more_and_the_tar_is_not_blamed(damage, sets, tmp_path):
    expected = all_of(sets[0], BlockCache(tmp_path, 1 << 30, BLOCK))
    for path in files(tmp_path):
        damage(path)

    assert all_of(sets[0], BlockCache(tmp_path, 1 << 30, BLOCK)) == expected
    assert all_of(sets[0], BlockCache(tmp_path, 1 << 30, BLOCK)) == expected == all_of(sets[1], None)


def test_a_tar_that_is_damaged_in_the_store_is_blamed(there, tmp_path):
    tar = there.tars[0]
    there.folder.write(tar.name, bytes(tar.num_bytes))

    with pytest.raises(ValueError, match=f"{tar.name} is not what its manifest says .*sample 0 does not have"):
        all_of(there, BlockCache(tmp_path, 1 << 30, BLOCK))


@pytest.mark.parametrize("cached", [True, False])
def test_a_tar_that_is_missing_in_the_store_is_named(cached, there, tmp_path):
    tar = there.tars[1]
    there.folder.delete(tar.name)

    with pytest.raises(ValueError, match=f"{tar.name} is not what its manifest says"):
        all_of(there, BlockCache(tmp_path, 1 << 30, BLOCK) if cached else None)


def test_several_workers_share_a_folder_while_blocks_come_and_go(sets, tmp_path):
    expected, found = all_of(sets[1], None), []
    workers = [
        threading.Thread(target=lambda: found.append(all_of(sets[0], BlockCache(tmp_path, 6 * BLOCK, BLOCK))))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert found == [expected] * 6
    assert not [path for path in files(tmp_path) if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_done_without(sets, tmp_path):
    (tmp_path / "file").write_bytes(b"")

    assert all_of(sets[0], BlockCache(tmp_path / "file", 1 << 30, BLOCK)) == all_of(sets[1], None)


def test_a_full_disk_is_done_without(sets, disk):
    place, limit = disk
    limit("size=16k")

    assert all_of(sets[0], BlockCache(place, 1 << 30, BLOCK)) == all_of(sets[1], None)


def test_another_tar_of_the_same_name_has_other_blocks(there, write_pictures, make_set, tmp_path):
    cache = BlockCache(tmp_path / "cache", 1 << 30, BLOCK)
    all_of(there, cache)
    write_pictures(tmp_path / "source", NUM, seed=9)
    here = make_set(tmp_path / "source", tmp_path / "set", val_fraction=0)
    there_again = Folder(there.folder.uri.replace("cached", "again"))
    make_set(tmp_path / "source", there_again.uri, val_fraction=0)

    assert all_of(open_shard_set(there_again), cache) == all_of(here, None)
