"""`ddpm sample`: a Ray job of its own pulls a model from MLflow, draws pictures, judges them and logs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.data.images import encode_png
from diffusion.data.layout import tar_name
from diffusion.data.shard_set import DATASET, Header, ShardSet, commit, open_shard_set
from diffusion.data.shards import ShardReport, read_report
from diffusion.files import Folder
from diffusion.film import forward_states, strip
from diffusion.grid import image_grid
from diffusion.sampling import SamplerConfig
from diffusion.settings import narrowed

from .cluster.connection import connected, drawing_workers
from .cluster.tasks import make_missing, warm_up
from .config_file import to_plain
from .draw_part import REVERSE_FILM, REVERSE_STRIP, DrawRequest, draw_part
from .drawing import Part, check_sampler, chosen_labels, loaded, model_files, parts_of
from .metrics.feature_nets import check_nets, feature_nets
from .metrics.features import file_of, read_first
from .metrics.measure import NEIGHBOURS, Subject, features_of, measure
from .pages.card import model_card
from .progress import say
from .storage import FOR_EVER, check_storage, locked
from .tracking import URI_TAG, ModelVersion, TrackedRun, Tracker, describe, lineage_tags, pull_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import Config, SampleStage, Workers
    from .drawing import ModelFiles
    from .metrics.features import NetFile
    from .storage import Environment

GRID, FORWARD = "grid.png", "forward.png"
GRID_IMAGES = 100
GRID_PIXELS = 480
FORWARD_IMAGES = 4
FEATURES_TAG = "ddpm.features"
PLAN = "plan"
"""the folder of what only the making of a set needs"""


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
    if stage.labels:
        parts.append(list(stage.labels))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def finished(config: Config, environment: Environment, model: ModelVersion) -> SampleRun | None:
    """This very sample run, if it is done and judged as asked, and its pictures are still there."""
    key = sample_key(config.sample, model)
    tracked = Tracker(environment).finished(config.name, "sample", key)
    folder = environment.samples(key)
    if tracked is None or not folder.exists(GRID):
        return None
    judged = set(config.sample.features) <= set(tracked.tags.get(FEATURES_TAG, "").split())
    return SampleRun(folder, tracked) if judged else None


def run(config: Config, environment: Environment, model: ModelVersion) -> SampleRun:
    """Draw the pictures, or those that are missing, and log them with their metrics.

    A second call while the first is at work waits, and has what that made. Raises ValueError for settings that the
    model cannot serve.
    """
    check_storage(environment)
    key = sample_key(config.sample, model)
    with locked(environment, f"sample-{key}", wait_s=FOR_EVER):
        if (done := finished(config, environment, model)) is not None:
            say(f"samples: reused {done.folder.uri}")
            return done
        files = model_files(model.uri, pull_model(model))
        check_sampler(config.sample, loaded(files))
        chosen_labels(config.sample.labels, loaded(files).classes)
        check_nets(environment, config.sample)
        with connected(environment, config.sample):
            workers = drawing_workers(config.sample)
            warm_up(draw_part, workers)
            tracker = Tracker(environment)
            tags = {**lineage_tags(model), FEATURES_TAG: " ".join(config.sample.features)}
            run_id = tracker.start(config.name, "sample", key, tags, to_plain(config.sample))
            job = _Job(config, environment, tracker, model, files, run_id, environment.samples(key), key, workers)
            with tracker.ending(run_id):
                job.work()
        return SampleRun(job.folder, tracker.run(run_id))


@dataclass(frozen=True)
class _Job:
    """A sample run at work."""

    config: Config
    environment: Environment
    tracker: Tracker
    model: ModelVersion
    files: ModelFiles
    run_id: str
    folder: Folder
    key: str
    workers: Workers
    """who draw"""

    def work(self) -> None:
        """Draw, judge, log; the grid, last, says that all is there."""
        data = self._data()
        nets = []
        if data is not None and self.config.sample.features:
            nets = feature_nets(self.environment, self.tracker, self.config.sample, self.config.name, data)
        started = time.monotonic()
        shards = self._draw(nets)
        rate = self.config.sample.num / (time.monotonic() - started)
        self.tracker.log_metrics(self.run_id, {"images_per_s": rate})
        self.folder.write_json("config.json", to_plain(self.config))
        grid = self._grid(shards)
        if data is not None and nets:
            self._judge(shards, data, nets, grid)
        self._log_pictures(grid)
        self.folder.write(GRID, grid)

    def _data(self) -> ShardSet | None:
        """What the model was trained on, if that is still there."""
        try:
            return open_shard_set(Folder(self.model.tags[URI_TAG]))
        except FileNotFoundError as err:
            say(f"samples: not judged, the training data cannot be read: {err}")
            return None

    def _draw(self, nets: Sequence[NetFile]) -> ShardSet:
        """The pictures as a shard set, of the same format as training data, and their features."""
        stage, model = self.config.sample, loaded(self.files)
        outs = [features_of(self.environment, net, self.key) for net in nets]
        if self.folder.exists(DATASET):
            return open_shard_set(self.folder)

        def find(part: Part) -> ShardReport | None:
            complete = all(out.exists(file_of(tar_name("train", part.number))) for out in outs)
            return read_report(self.folder, part.number) if complete else None

        reports = make_missing(
            "samples",
            parts_of(stage.num, model.chunk),
            find,
            draw_part,
            DrawRequest(stage, self.files, self.folder, nets, outs),
            self.workers,
            lambda report: report.num_samples,
            stage.num,
        )
        header = Header(
            image_size=model.unet.config.image_size,
            channels=model.unet.config.image_channels,
            classes=model.classes,
            config={**to_plain(stage), "model": self.files.uri},
            config_fingerprint=self.key,
            source_fingerprint=self.key,
        )
        return commit(header, reports, self.folder)

    def _grid(self, shards: ShardSet) -> bytes:
        images, _ = read_first(shards, "train", GRID_IMAGES)
        num_columns = grid_columns(len(chosen_labels(self.config.sample.labels, shards.classes)))
        return encode_png(image_grid(images, num_columns, GRID_PIXELS))

    def _judge(self, shards: ShardSet, data: ShardSet, nets: Sequence[NetFile], grid: bytes) -> None:
        """The metrics, onto the run and the model's own page; how data turns to noise, and what samples are near to."""
        stage, subject = self.config.sample, Subject(shards, "train", self.key)
        measured = measure(self.environment, subject, data, nets, stage, stage)
        self.tracker.log_metrics(self.run_id, measured.metrics, model_id=self.model.model_id)
        card = model_card(self.model, loaded(self.files), measured.metrics)
        describe(self.tracker, self.model, card, grid)
        self.folder.write(NEIGHBOURS, measured.neighbours)
        real, _ = read_first(data, "train", FORWARD_IMAGES)
        states = forward_states(loaded(self.files).diffusion, real)
        self.folder.write(FORWARD, encode_png(strip(states, 2 * GRID_PIXELS)))

    def _log_pictures(self, grid: bytes) -> None:
        """Everything that is in the folder into MLflow, in as many calls as there are files: tars, not pictures."""
        with TemporaryDirectory() as temporary:
            samples = Path(temporary) / "samples"
            self.folder.download(samples)
            shutil.rmtree(samples / PLAN)
            (samples / GRID).write_bytes(grid)
            for name in (GRID, *SHOWN):
                if (samples / name).exists():
                    (samples / name).rename(Path(temporary) / name)
            self.tracker.log_folder(self.run_id, Path(temporary))


SHOWN = (REVERSE_FILM, REVERSE_STRIP, FORWARD, NEIGHBOURS)


def grid_columns(num_classes: int) -> int:
    """About ten, with one class a column where there are few enough: the classes take turns."""
    return num_classes * max(1, 10 // num_classes) if 1 <= num_classes <= 16 else 10
