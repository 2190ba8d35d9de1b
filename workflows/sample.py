"""`ddpm sample`: a Ray job of its own pulls a model from MLflow, draws pictures, judges them and logs them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.data.images import encode_png
from diffusion.data.shard_set import DATASET, Header, ShardSet, commit, open_shard_set
from diffusion.data.shards import Sample, ShardReport, read_report, write_shard
from diffusion.files import Folder
from diffusion.grid import image_grid
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.seeding import image_seeds
from diffusion.settings import narrowed

from .card import model_card
from .cluster import connected, make_missing
from .config_file import to_plain
from .drawing import ModelFiles, Part, check_sampler, lineage_tags, loaded, model_files, parts_of
from .judge import judge, read_images
from .progress import say
from .storage import check_storage, locked
from .tracking import URI_TAG, ModelVersion, TrackedRun, Tracker, describe

if TYPE_CHECKING:
    from diffusion.checkpoint import Model

    from .config import Config, SampleStage
    from .storage import Environment

GRID = "grid.png"
GRID_IMAGES = 100
GRID_PIXELS = 480


@dataclass(frozen=True)
class SampleRun:
    """What a sample run left."""

    folder: Folder
    """its pictures, as a shard set, and the grid"""
    tracked: TrackedRun


def sample_key(stage: SampleStage, model: ModelVersion) -> str:
    """The identity of a sample run: the weights, and all that affects the pictures (16 hex characters)."""
    settings = narrowed(SamplerConfig, stage)
    parts = [model.tags["ddpm.weights_sha256"], model.uri, settings, stage.num, stage.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def finished(config: Config, environment: Environment, model: ModelVersion) -> SampleRun | None:
    """This very sample run, if it is done and its pictures are still there."""
    key = sample_key(config.sample, model)
    tracked = Tracker(environment).finished(config.name, "sample", key)
    folder = environment.samples(key)
    return SampleRun(folder, tracked) if tracked is not None and folder.exists(GRID) else None


def run(config: Config, environment: Environment, model: ModelVersion) -> SampleRun:
    """Draw the pictures, or those that are missing, and log them with their metrics.

    Raises ValueError for settings that the model cannot serve.
    """
    check_storage(environment)
    key = sample_key(config.sample, model)
    with locked(environment, f"sample-{key}"):
        if (done := finished(config, environment, model)) is not None:
            say(f"samples: reused {done.folder.uri}")
            return done
        files = model_files(model)
        check_sampler(config.sample, loaded(files))
        tracker, folder = Tracker(environment), environment.samples(key)
        run_id = tracker.start(config.name, "sample", key, lineage_tags(model), to_plain(config.sample))
        with tracker.ending(run_id):
            started = time.monotonic()
            shards = _draw(config.sample, environment, files, folder)
            tracker.log_metrics(run_id, {"images_per_s": config.sample.num / (time.monotonic() - started)})
            folder.write_json("config.json", to_plain(config))
            _log_pictures(tracker, run_id, shards, files)
        return SampleRun(folder, tracker.run(run_id))


def draw_part(part: Part, stage: SampleStage, model: Model, source: str, out: Folder) -> ShardReport:
    """Draw the images of one shard and write it."""
    seeds = image_seeds(stage.seed, part.start, part.stop)
    num_classes = len(model.classes)
    labels = [i % num_classes for i in range(part.start, part.stop)] if num_classes else None
    samples = []
    pictures = (
        picture
        for chunk in sample_images(model.unet, model.diffusion, seeds, labels, stage, model.chunk)
        for picture in chunk
    )
    for offset, picture in enumerate(pictures):
        image = encode_png(picture.permute(1, 2, 0).numpy())
        samples.append(
            Sample(
                index=offset,
                split="train",
                image=image,
                label=-1 if labels is None else labels[offset],
                side=model.unet.config.image_size,
                source=f"{source} seed={seeds[offset]}",
                source_sha256=hashlib.sha256(image).hexdigest(),
            )
        )
    return write_shard(part.number, samples, [], out)


def _draw(stage: SampleStage, environment: Environment, files: ModelFiles, out: Folder) -> ShardSet:
    """The pictures as a shard set, of the same format as training data."""
    if out.exists(DATASET):
        return open_shard_set(out)
    model = loaded(files)
    common = _Request(stage, files, out.uri)
    with connected(environment, stage):
        reports = make_missing(
            "samples",
            parts_of(stage.num, model.chunk),
            lambda part: read_report(out, part.number),
            _draw_part,
            common,
            stage,
            lambda report: report.num_samples,
            stage.num,
        )
    fingerprint = sample_key(stage, files.version)
    header = Header(
        image_size=model.unet.config.image_size,
        channels=model.unet.config.image_channels,
        classes=model.classes,
        config={**to_plain(stage), "model": files.version.uri},
        config_fingerprint=fingerprint,
        source_fingerprint=fingerprint,
    )
    return commit(header, reports, out)


@dataclass(frozen=True)
class _Request:
    """What all tasks of a sample run share."""

    stage: SampleStage
    model: ModelFiles
    out_uri: str


def _draw_part(part: Part, common: _Request) -> ShardReport:
    """In a Ray task."""
    return draw_part(part, common.stage, loaded(common.model), common.model.version.uri, Folder(common.out_uri))


def _log_pictures(tracker: Tracker, run_id: str, shards: ShardSet, model: ModelFiles) -> None:
    """The grid, the shard set and the metrics into MLflow, and onto the model's own page."""
    images, _ = read_images(shards, "train")
    num_columns = grid_columns(len(shards.classes))
    scale = max(1, GRID_PIXELS // (num_columns * shards.image_size))
    grid = encode_png(image_grid(images[:GRID_IMAGES], num_columns, scale))
    try:
        metrics = judge(shards, open_shard_set(Folder(model.version.tags[URI_TAG])))
        tracker.log_metrics(run_id, metrics, model_id=model.version.model_id)
        describe(tracker, model.version, model_card(model.version, loaded(model), metrics), grid)
    except FileNotFoundError as err:
        say(f"samples: not judged, the training data cannot be read: {err}")
    with TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "samples"
        shards.folder.download(pictures)
        tracker.log_folder(run_id, pictures, "samples")
        grid_file = Path(temporary) / GRID
        grid_file.write_bytes(grid)
        tracker.log_file(run_id, grid_file)
    shards.folder.write(GRID, grid)


def grid_columns(num_classes: int) -> int:
    """About ten, with one class a column where there are few enough: the classes take turns."""
    return num_classes * max(1, 10 // num_classes) if 1 <= num_classes <= 16 else 10
