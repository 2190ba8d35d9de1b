"""Training's batches beside a reader written afresh, from the design's words: a sample at a time, nothing kept."""

import hashlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffusion.data.loader import LoadConfig, SampleReader, batches
from diffusion.data.order import OrderConfig
from diffusion.seeding import generator

WORKERS = [1, 2, 3, 4, 7, 8]
SHAPE = {"seed": 3, "global_batch": 24, "num_lanes": 8}
CONFIG = OrderConfig(**SHAPE, shuffle_window=5)
FROM_DISK = LoadConfig(keep_decoded="off")
STOP = 20


@pytest.fixture(scope="module", params=["png", "jpeg"])
def shard_set(request, write_pictures, make_set, tmp_path_factory):
    """170 pictures of two classes in shards of about 32, every picture different: seven steps an epoch."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate("ab"):
        write_pictures(folder / name, 85, seed=seed)
    out = tmp_path_factory.mktemp("set")
    return make_set(folder, out, val_fraction=0, samples_per_shard=32, encoding=request.param)


def sample_by_sample(shard_set, config, start, stop):
    """[(images, labels)] of the global batches, lane by lane."""
    rows = [
        (tar.name, row)
        for tar in shard_set.split("train")
        for row in pq.read_table(f"{shard_set.folder.path}/manifest.parquet/part-{tar.shard:06d}.parquet").to_pylist()
        if row["split"] == "train"
    ]
    sizes = [tar.num_samples for tar in shard_set.split("train")]
    found = []
    for step in range(start, stop):
        epoch, of_epoch = divmod(step, len(rows) // config.global_batch)
        line = epoch_line(sizes, config, epoch)
        each = config.global_batch // config.num_lanes
        length = len(line) // config.num_lanes
        positions = []
        for lane in range(config.num_lanes):
            mine = line[lane * length : (lane + 1) * length]
            for place in range(of_epoch * each, (of_epoch + 1) * each):
                window, within = divmod(place, config.shuffle_window)
                first = window * config.shuffle_window
                size = min(config.shuffle_window, length - first)
                order = generator(config.seed, f"window/{epoch}", step=window, lane=lane).permutation(size)
                positions.append(mine[first + order[within]])
        found.append([read(shard_set, *rows[position]) for position in positions])
    return [(np.stack([image for image, _ in batch]), [label for _, label in batch]) for batch in found]


def epoch_line(sizes, config, epoch):
    """All positions of an epoch in a line: shards permuted, rolled, the remainder left out."""
    draw, starts = generator(config.seed, "epoch", step=epoch), np.cumsum([0, *sizes])
    line = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in draw.permutation(len(sizes))])
    line = np.roll(line, -int(draw.integers(len(line))))
    return line[: len(line) - len(line) % config.global_batch]


def read(shard_set, name, row):
    with open(f"{shard_set.folder.path}/{name}", "rb") as tar:  # noqa: PTH123
        tar.seek(row["offset"])
        data = tar.read(row["num_bytes"])
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    return np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1), row["label"]


def global_batches(shard_set, config, start, stop, num_workers=1, load=FROM_DISK):
    """The workers' shares put together again."""
    lane_batch, reader = config.lane_batch, SampleReader(shard_set, config=load)
    whole = {}
    for rank in range(num_workers):
        for batch in batches(reader, config, start, stop, rank, num_workers):
            parts = zip(batch.lanes, batch.images.split(lane_batch), batch.labels.split(lane_batch), strict=True)
            whole.setdefault(batch.step, {}).update({lane: (images, labels) for lane, images, labels in parts})
    return [
        tuple(torch.cat([whole[step][lane][part] for lane in range(config.num_lanes)]) for part in (0, 1))
        for step in range(start, stop)
    ]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for (images, labels), (true_images, true_labels) in zip(found, expected, strict=True):
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(images, true_images)
        assert labels.tolist() == true_labels


@pytest.mark.parametrize("num_workers", WORKERS)
def test_any_number_of_workers_reads_what_one_reads_sample_by_sample(num_workers, shard_set):
    expected = sample_by_sample(shard_set, CONFIG, 0, STOP)

    assert_equal(global_batches(shard_set, CONFIG, 0, STOP, num_workers), expected)


def test_every_start_gives_what_is_read_there_sample_by_sample(shard_set):
    expected = sample_by_sample(shard_set, CONFIG, 0, STOP)
    for start in range(STOP):
        assert_equal(global_batches(shard_set, CONFIG, start, STOP), expected[start:])


@pytest.mark.parametrize("window", [1, 2, 7, 21, 1000])
@pytest.mark.parametrize("keep", ["on", "off"])
def test_windows_of_any_size_kept_or_not(window, keep, shard_set):
    config = OrderConfig(**SHAPE, shuffle_window=window)
    load = LoadConfig(keep_decoded=keep)

    assert_equal(global_batches(shard_set, config, 3, STOP, 2, load), sample_by_sample(shard_set, config, 3, STOP))


@pytest.mark.parametrize(
    "load",
    [
        LoadConfig(keep_decoded="off", ahead_bytes=0),
        LoadConfig(keep_decoded="off", read_threads=1, decode_threads=1),
        LoadConfig(keep_decoded="on", ahead_bytes=0),
        LoadConfig(keep_bytes=170 * 3 * 64),
        LoadConfig(keep_bytes=170 * 3 * 64 - 1),
    ],
)
def test_no_setting_of_reading_changes_what_is_read(load, shard_set):
    assert_equal(global_batches(shard_set, CONFIG, 2, STOP, 3, load), sample_by_sample(shard_set, CONFIG, 2, STOP))


@pytest.mark.parametrize("stretch_bytes", [0, 20_000])
def test_few_windows_at_a_time_are_the_same_as_many(stretch_bytes, shard_set, monkeypatch):
    monkeypatch.setattr("diffusion.data.loader.STRETCH_BYTES", stretch_bytes)

    assert_equal(global_batches(shard_set, CONFIG, 2, STOP, 3), sample_by_sample(shard_set, CONFIG, 2, STOP))
