import hashlib
import io
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffusion.data.loader import LoadConfig, SampleReader, batches
from diffusion.data.order import EpochOrder, OrderConfig
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

CONFIG = OrderConfig(seed=3, global_batch=24, num_lanes=8, shuffle_window=5)
FROM_DISK = LoadConfig(keep_decoded="off")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, write_pictures):
    """Pictures of three classes in a folder: (folder, pixels by name)."""
    folder = tmp_path_factory.mktemp("drawn")
    pixels = {
        f"{name}/{file}": picture
        for seed, name in enumerate("abc")
        for file, picture in write_pictures(folder / name, 60, seed=seed).items()
    }
    return folder, pixels


@pytest.fixture(scope="module")
def shard_set(drawn, make_set, tmp_path_factory):
    return make_set(drawn[0], tmp_path_factory.mktemp("set"), val_fraction=0.1)


@pytest.fixture
def copy_of_set(shard_set, tmp_path):
    """The folder of a copy, to be damaged, and the set that was opened there."""
    shutil.copytree(shard_set.folder.path, tmp_path / "copy")
    return tmp_path / "copy", open_shard_set(Folder(tmp_path / "copy"))


def sources(shard_set, split):
    """The source of every sample of a split, by position."""
    return [
        source for tar in shard_set.split(split) for source in shard_set.manifest(tar, ["source"])["source"].to_pylist()
    ]


def run(shard_set, start, stop, rank=0, num_workers=1, config=CONFIG):
    return list(batches(SampleReader(shard_set), config, start, stop, rank, num_workers))


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_position_reads_the_picture_and_the_label_that_were_written(split, drawn, shard_set):
    _, pixels = drawn
    names = sources(shard_set, split)
    images, labels = SampleReader(shard_set, split).read(range(len(names)))

    assert len(shard_set.split(split)) > 1
    assert images.dtype == np.uint8
    assert np.array_equal(images.transpose(0, 2, 3, 1), [pixels[name] for name in names])
    assert labels.tolist() == ["abc".index(name[0]) for name in names]


def test_positions_may_be_read_in_any_order_and_more_than_once(shard_set):
    reader = SampleReader(shard_set)
    whole, labels = reader.read(range(sum(reader.shard_sizes)))
    positions = [5, 100, 5, 0, 99]
    images, some_labels = SampleReader(shard_set).read(positions)

    assert np.array_equal(images, whole[positions])
    assert np.array_equal(some_labels, labels[positions])


def test_a_sample_without_a_class_has_the_label_minus_one(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "source", 10)
    flat = make_set(tmp_path / "source", tmp_path / "set", val_fraction=0)
    _, labels = SampleReader(flat).read(range(10))

    assert labels.tolist() == [-1] * 10


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp", "npy"])
def test_a_picture_of_any_encoding_is_what_its_file_says(encoding, drawn, make_set, tmp_path):
    shards = make_set(drawn[0], tmp_path, encoding=encoding, val_fraction=0)
    tar = shards.tars[0]
    images, _ = SampleReader(shards).read(range(tar.num_samples))
    places = shards.manifest(tar, ["offset", "num_bytes"]).to_pylist()
    for image, place in zip(images, places, strict=True):
        stream = io.BytesIO(shards.folder.read_range(tar.name, place["offset"], place["num_bytes"]))
        expected = np.load(stream) if encoding == "npy" else np.asarray(Image.open(stream))

        assert np.array_equal(image.transpose(1, 2, 0), expected)


@pytest.mark.parametrize(("change", "message"), [({"channels": 1}, "shape"), ({"image_size": 16}, "shape")])
def test_a_picture_of_another_kind_than_the_sets_is_named(change, message, shard_set):
    with pytest.raises(ValueError, match=rf"{shard_set.tars[0].name} is not what its manifest says .*{message}"):
        SampleReader(replace(shard_set, **change)).read([0])


def test_what_begins_like_no_picture_is_refused(copy_of_set):
    folder, shards = copy_of_set
    tar = shards.split("train")[0]
    part = folder / f"manifest.parquet/part-{tar.shard:06d}.parquet"
    table = pq.read_table(part)
    rows = table.to_pylist()
    for row in rows:
        data = (folder / tar.name).read_bytes()[row["offset"] + 1 :][: row["num_bytes"]]
        row |= {"offset": row["offset"] + 1, "sha256": hashlib.sha256(data).hexdigest()}
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), part)

    with pytest.raises(ValueError, match="unknown_format: not one of png, jpg, webp, npy"):
        SampleReader(shards).read([0])


def test_grey_pictures_have_one_channel(make_set, drawn, tmp_path):
    grey = make_set(drawn[0], tmp_path, channels=1, val_fraction=0)
    images, _ = SampleReader(grey).read([0, 1])

    assert images.shape == (2, 1, 8, 8)


def test_what_is_kept_in_memory_is_what_is_on_disk(shard_set):
    kept, fetched = SampleReader(shard_set), SampleReader(shard_set, config=FROM_DISK)
    first = kept.read(range(50))
    for tar in range(3):  # the second and third time from memory
        again = (kept if tar else fetched).read(range(50))

        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1], again[1])


def test_a_small_set_is_read_from_disk_only_once(copy_of_set):
    folder, shards = copy_of_set
    kept, fetched = SampleReader(shards), SampleReader(shards, config=FROM_DISK)
    for reader in (kept, fetched):
        reader.read([0, 1])
    (folder / shards.split("train")[0].name).unlink()

    assert len(kept.read([0, 1])[0]) == 2
    with pytest.raises(ValueError, match=shards.split("train")[0].name):
        fetched.read([0, 1])


def remove(path, _):
    path.unlink()


def flip_a_byte(path, offset):
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 1
    path.write_bytes(data)


def cut_inside_a_picture(path, offset):
    path.write_bytes(path.read_bytes()[: offset + 20])


def cut_before_a_picture(path, offset):
    path.write_bytes(path.read_bytes()[: offset - 512])


def swap_for_nothing(path, _):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, flip_a_byte, cut_inside_a_picture, cut_before_a_picture, swap_for_nothing])
def test_a_damaged_tar_is_named_when_its_sample_is_read(damage, copy_of_set):
    folder, shards = copy_of_set
    tar, position = shards.split("train")[1], shards.split("train")[0].num_samples + 3
    damage(folder / tar.name, shards.manifest(tar, ["offset"])["offset"][3].as_py())

    with pytest.raises(ValueError, match=rf"{folder}/{tar.name} is not what its manifest says"):
        SampleReader(shards).read([position])


def test_another_whole_picture_in_its_place_is_found(copy_of_set):
    folder, shards = copy_of_set
    tar = shards.split("train")[0]
    places = shards.manifest(tar, ["offset", "num_bytes"]).to_pylist()
    data = bytearray((folder / tar.name).read_bytes())
    twin = next(i for i in range(1, len(places)) if places[i]["num_bytes"] == places[0]["num_bytes"])
    (first, second), size = (places[i]["offset"] for i in (0, twin)), places[0]["num_bytes"]
    data[first : first + size] = data[second : second + size]
    (folder / tar.name).write_bytes(data)

    with pytest.raises(ValueError, match="sample 0 does not have the sha256 of the manifest"):
        SampleReader(shards).read([0])


def test_a_damaged_sample_does_not_hinder_reading_another(copy_of_set):
    folder, shards = copy_of_set
    tar = shards.split("train")[0]
    flip_a_byte(folder / tar.name, shards.manifest(tar, ["offset"])["offset"][3].as_py())

    assert len(SampleReader(shards).read([2, 4])[0]) == 2


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 8])
def test_the_shares_of_all_workers_are_the_global_batch_lane_by_lane(num_workers, shard_set):
    whole = run(shard_set, 0, 10)
    shares = [run(shard_set, 0, 10, rank, num_workers) for rank in range(num_workers)]
    for step, expected in enumerate(whole):
        found = {}
        for share in shares:
            batch = share[step]
            for lane, images, labels in zip(batch.lanes, batch.images.split(3), batch.labels.split(3), strict=True):
                found[lane] = images, labels

        assert sorted(found) == expected.lanes
        assert torch.equal(torch.cat([found[lane][0] for lane in expected.lanes]), expected.images)
        assert torch.equal(torch.cat([found[lane][1] for lane in expected.lanes]), expected.labels)


@pytest.mark.parametrize("num_workers", [1, 3, 8])
def test_every_worker_takes_every_step(num_workers, shard_set):
    steps = [[batch.step for batch in run(shard_set, 4, 15, rank, num_workers)] for rank in range(num_workers)]

    assert steps == [list(range(4, 15))] * num_workers


@pytest.mark.parametrize("start", [1, 6, 7, 13, 20])
def test_a_run_that_starts_later_sees_what_an_unbroken_one_sees(start, shard_set):
    unbroken = run(shard_set, 0, 24)[start:]
    resumed = run(shard_set, start, 24)

    assert EpochOrder(SampleReader(shard_set).shard_sizes, CONFIG, 0).num_steps < 8  # so there are several epochs
    assert [batch.step for batch in resumed] == list(range(start, 24))
    assert all(torch.equal(a.images, b.images) for a, b in zip(unbroken, resumed, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(unbroken, resumed, strict=True))


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_step_shows_what_the_order_of_its_epoch_says(epoch, shard_set):
    reader = SampleReader(shard_set)
    order = EpochOrder(reader.shard_sizes, CONFIG, epoch)
    walked = run(shard_set, 0, (epoch + 1) * order.num_steps)[epoch * order.num_steps :]
    for step, batch in enumerate(walked):
        images, labels = reader.read(np.concatenate([order.lane_batch(lane, step) for lane in range(8)]))

        assert np.array_equal(batch.images, images)
        assert np.array_equal(batch.labels, labels)


def test_a_set_without_classes_has_batches_without_labels(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "source", 30)
    flat = make_set(tmp_path / "source", tmp_path / "set", val_fraction=0)
    (batch,) = run(flat, 0, 1)

    assert batch.labels is None
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (24, 3, 8, 8)


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def test_no_thread_is_left_after_the_last_batch_or_a_close_or_an_error(copy_of_set):
    folder, shards = copy_of_set
    run(shards, 0, 3)

    assert not workers()

    ours = batches(SampleReader(shards, config=FROM_DISK), CONFIG, 0, 100)
    next(ours)
    busy = workers()
    ours.close()

    assert busy
    assert not workers()

    for tar in shards.tars:
        (folder / tar.name).unlink()
    with pytest.raises(ValueError, match="is not what its manifest says"):
        run(shards, 0, 3)

    assert not workers()


def test_no_positions_are_no_pictures(shard_set):
    images, labels = SampleReader(shard_set).read([])

    assert images.shape == (0, 3, 8, 8)
    assert labels.shape == (0,)


def test_more_workers_than_lanes_are_refused(shard_set):
    with pytest.raises(ValueError, match="num_workers must be at most num_lanes=8, got 9"):
        run(shard_set, 0, 1, rank=0, num_workers=9)


def test_a_global_batch_larger_than_the_set_is_refused(shard_set):
    with pytest.raises(ValueError, match=r"global_batch must be at most the number of training samples, \d+, got 800"):
        run(shard_set, 0, 1, config=OrderConfig(global_batch=800, num_lanes=8))
