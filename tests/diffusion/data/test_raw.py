import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data import raw
from diffusion.data.loader import LoadConfig, SampleReader, batches
from diffusion.data.order import OrderConfig
from diffusion.data.raw import RawReader, ranges, raw_samples
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

CONFIG = OrderConfig(seed=1, global_batch=16, num_lanes=4, shuffle_window=8)
FROM_DISK = LoadConfig(keep_decoded="off")


class CountingFolder(Folder):
    """Writes down what is read of tars."""

    def __init__(self, uri):
        super().__init__(uri)
        self.reads = []

    def read_range(self, name, offset, num_bytes):
        self.reads.append((name, offset, num_bytes))
        return super().read_range(name, offset, num_bytes)


@pytest.fixture(scope="module")
def whole(write_pictures, make_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate("ab"):
        write_pictures(folder / name, 80, seed=seed)
    return make_set(folder, tmp_path_factory.mktemp("set"), val_fraction=0)


@pytest.fixture
def copied(whole, tmp_path):
    """A set to be damaged: (its folder, the set)."""
    shutil.copytree(whole.folder.path, tmp_path / "copy")
    return tmp_path / "copy", open_shard_set(Folder(tmp_path / "copy"))


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 3 << 20)), min_size=1, max_size=60),
    st.sampled_from([raw.LOCAL_RANGE, raw.REMOTE_RANGE]),
)
def test_reads_cover_all_samples_in_order_within_their_bounds(gaps_and_sizes, most):
    sizes = np.array([size for _, size in gaps_and_sizes])
    offsets = np.cumsum([gap for gap, _ in gaps_and_sizes]) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parts = ranges(offsets, sizes, most)

    assert [i for part in parts for i in range(len(sizes))[part]] == list(range(len(sizes)))
    for part in parts:
        starts, stops = offsets[part], (offsets + sizes)[part]
        assert stops[-1] - starts[0] <= most or len(starts) == 1
        assert (starts[1:] - stops[:-1] <= raw.MAX_GAP).all()
    for part, following in pairwise(parts):
        first = offsets[following.start]
        too_far = first - (offsets + sizes)[part.stop - 1] > raw.MAX_GAP
        assert too_far or (offsets + sizes)[following.start] - offsets[part.start] > most


def test_a_window_is_fetched_by_one_read_of_each_tar_that_it_lies_in(whole):
    folder = CountingFolder(whole.folder.uri)
    reader = RawReader(replace(whole, folder=folder))
    first = whole.tars[0].num_samples
    found = reader.fetch(np.random.default_rng(0).permutation(np.arange(first - 10, first + 20)))

    assert sorted(found) == list(range(first - 10, first + 20))
    assert [name for name, _, _ in folder.reads] == [whole.tars[0].name, whole.tars[1].name]


def test_a_resume_in_mid_window_reads_only_what_is_left_of_it(whole):
    """At the last step of a window of 8 x 4 samples only 4 x 4 are still to be shown, and no later ones before them."""
    folder = CountingFolder(whole.folder.uri)
    config = OrderConfig(seed=1, global_batch=16, num_lanes=4, shuffle_window=40)
    read = {}
    for start in (0, 9):  # of the 10 steps of an epoch, which is one window
        folder.reads.clear()
        list(batches(SampleReader(replace(whole, folder=folder), config=FROM_DISK), config, start, 10))
        read[start] = sum(num_bytes for _, _, num_bytes in folder.reads)

    assert read[9] < 0.9 * read[0]


def test_manifests_of_tars_that_are_done_with_are_dropped(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "source", 640)
    many = make_set(tmp_path / "source", tmp_path / "set", samples_per_shard=64, val_fraction=0)
    reader = SampleReader(many, config=FROM_DISK)
    for _ in batches(reader, OrderConfig(global_batch=10, num_lanes=1, shuffle_window=5), 0, 150):
        assert len(reader.raw.manifests._kept) <= 2
    assert len(many.tars) == 10


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("check", [True, False])
def test_raw_samples_are_those_of_stock_webdataset(check, whole):
    for tar in whole.tars:
        stock = list(webdataset.WebDataset(whole.folder.at(tar.name), shardshuffle=False))
        expected = [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in stock]

        assert list(raw_samples(whole, tar, check)) == expected


def test_raw_samples_without_labels_have_none(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "source", 10)
    flat = make_set(tmp_path / "source", tmp_path / "set", val_fraction=0)

    assert [list(sample) for _, sample in raw_samples(flat, flat.tars[0])] == [["png"]] * flat.tars[0].num_samples


def test_raw_samples_longer_than_one_read(whole, monkeypatch):
    expected = list(raw_samples(whole, whole.tars[0]))
    monkeypatch.setattr(raw, "LOCAL_RANGE", 3000)

    assert list(raw_samples(whole, whole.tars[0])) == expected


def remove(path, offset):
    path.unlink()


def cut_off(path, offset):
    path.write_bytes(path.read_bytes()[:offset])


def change(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def shift(path, offset):
    data = path.read_bytes()
    path.write_bytes(data[:offset] + bytes(512) + data[offset:])


PLACES = {"first": (0, 0), "inside the first": (0, 30), "middle": (30, 10), "last": (-1, -1)}


@pytest.mark.parametrize("damage", [remove, cut_off, change, shift])
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_tar_stops_the_run_and_a_mended_one_lets_the_same_seek_go_on(damage, place, copied):
    folder, shards = copied
    expected = list(batches(SampleReader(shards, config=FROM_DISK), CONFIG, 0, 20))
    tar = shards.tars[1]
    rows = shards.manifest(tar, ["offset", "num_bytes"]).to_pylist()
    row, byte = rows[PLACES[place][0]], PLACES[place][1]
    path = folder / tar.name
    good = path.read_bytes()
    damage(path, row["offset"] + byte % row["num_bytes"])
    seen = []
    with pytest.raises(ValueError, match=rf"{path} is not what its manifest says .*; restore it, or delete"):
        seen.extend(batches(SampleReader(shards, config=FROM_DISK), CONFIG, 0, 20))
    with pytest.raises(ValueError, match=rf"{path} is not what its manifest says"):
        list(raw_samples(shards, tar))
    path.write_bytes(good)
    seen.extend(batches(SampleReader(shards, config=FROM_DISK), CONFIG, len(seen), 20))

    assert [batch.step for batch in seen] == list(range(20))
    assert all(a.images.equal(b.images) and a.labels.equal(b.labels) for a, b in zip(seen, expected, strict=True))


def drop(part):
    part.unlink()


def shorten(part):
    pq.write_table(pq.read_table(part).slice(1), part)


def turn_around(part):
    table = pq.read_table(part)
    pq.write_table(table.take(list(range(len(table)))[::-1]), part)


def empty(part):
    part.write_bytes(b"")


@pytest.mark.parametrize("damage", [drop, shorten, turn_around, empty])
def test_a_manifest_that_does_not_fit_its_tar_stops_the_run(damage, copied):
    folder, shards = copied
    tar = shards.tars[0]
    damage(folder / f"manifest.parquet/part-{tar.shard:06d}.parquet")

    with pytest.raises(ValueError, match=rf"manifest of shard {folder}/{tar.name} cannot be used .* restore it"):
        list(batches(SampleReader(shards), CONFIG, 0, 10))
