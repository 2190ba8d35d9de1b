"""What MLflow is told of a shard set: how many of what, what was refused and why, and how the pictures look."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from pyarrow import csv

from diffusion.data.images import encode_png
from diffusion.data.layout import SPLITS
from diffusion.data.loader import SampleReader
from diffusion.grid import image_grid

from .config_file import to_plain
from .tracking import DIGEST_TAG, URI_TAG, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusion.data.shard_set import ShardSet
    from diffusion.data.shards import TarStats

    from .config import Config
    from .storage import Environment

SHEET_IMAGES, SHEET_COLUMNS, SHEET_PIXELS = 100, 10, 960
READERS = 16


@contextmanager
def track(config: Config, environment: Environment) -> Iterator[Callable[[ShardSet, bool], None]]:
    """Around the making of a shard set: an MLflow run of it. Gives what is to be called with the finished set.

    And with whether it was made just now: the rate of an older one is not known.
    """
    tracker, stage, started = Tracker(environment), config.shard, time.monotonic()
    run_id = tracker.start(config.name, "shard", stage.fingerprint[:16], {}, to_plain(stage))

    def log(shards: ShardSet, timed: bool) -> None:
        seconds = time.monotonic() - started
        rate = {"images_per_s": sum(tar.num_samples for tar in shards.tars) / seconds} if timed else {}
        tracker.log_metrics(run_id, _counts(shards) | rate)
        tracker.log_dataset(run_id, config.name, shards.digest, shards.folder.uri, context="sharding")
        tracker.tag(run_id, {DIGEST_TAG: shards.digest, URI_TAG: shards.folder.uri})
        with TemporaryDirectory() as folder:
            (Path(folder) / "contact_sheet.png").write_bytes(contact_sheet(shards))
            if shards.classes:
                csv.write_csv(class_histogram(shards), Path(folder) / "class_histogram.csv")
            tracker.log_folder(run_id, Path(folder), "shards")

    with tracker.ending(run_id):
        yield log


def _counts(shards: ShardSet) -> dict[str, float]:
    return {
        **{f"num_{split}": shards.num_samples(split) for split in SPLITS},
        "num_tars": len(shards.tars),
        "num_bytes": sum(tar.num_bytes for tar in shards.tars),
        "num_refused": sum(shards.rejects.values()),
        **{f"refused_{reason}": count for reason, count in shards.rejects.items()},
    }


def contact_sheet(shards: ShardSet) -> bytes:
    """Pictures from all over the training split, as a PNG."""
    images, _ = SampleReader(shards, "train").read(shards.spread("train", SHEET_IMAGES))
    return encode_png(image_grid(torch.from_numpy(images), SHEET_COLUMNS, SHEET_PIXELS))


def class_histogram(shards: ShardSet) -> pa.Table:
    """How many samples of each class there are in each split. One part of the manifest is in memory at a time."""
    counts: Counter[tuple[str, int]] = Counter()

    def count(tar: TarStats) -> Counter[tuple[str, int]]:
        return Counter((tar.split, label) for label in shards.manifest(tar, ["label"])["label"].to_pylist())

    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(count, shards.tars):
            counts.update(found)
    columns = {split: [counts[split, label] for label in range(len(shards.classes))] for split in SPLITS}
    return pa.table({"class": shards.classes, **columns})
