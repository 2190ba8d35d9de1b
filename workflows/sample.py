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
from .cluster.exclusive import exclusive
from .cluster.tasks import make_missing, warm_up
from .config_file import to_plain
from .draw_part import REVERSE_FILM, REVERSE_STRIP, DrawRequest, draw_part
from .drawing import Part, check_sampler, chosen_labels, loaded, model_files, parts_of
from .logged_samples import GRID
from .metrics.bits import held_out_bits
from .metrics.feature_nets import check_nets, feature_nets
from .metrics.features import file_of, read_first
from .metrics.measure import NEIGHBOURS, Subject, features_of, measure
from .pages.card import model_card
from .progress import say
from .storage import FOR_EVER, check_storage, locked
from .tracking import DIGEST_TAG, URI_TAG, ModelVersion, TrackedRun, Tracker, describe, lineage_tags, pull_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import JudgeConfig, SampleStage, Workers
    from .drawing import ModelFiles
    from .metrics.features import NetFile
    from .storage import Environment

FORWARD = "forward.png"
GRID_IMAGES = 100
GRID_PIXELS = 480
FORWARD_IMAGES = 4
JUDGED_TAG = "ddpm.judged_by"
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


def finished(stage: SampleStage, environment: Environment, model: ModelVersion) -> SampleRun | None:
    """This very sample run, if it is done and judged as asked, and its pictures are still there."""
    key = sample_key(stage, model)
    tracked = Tracker(environment).finished(model.name, "sample", key)
    folder = environment.samples(key)
    if tracked is None or not folder.exists(GRID):
        return None
    judged = judged_by(stage) <= set(tracked.tags.get(JUDGED_TAG, "").split())
    return SampleRun(folder, tracked) if judged or training_data(model) is None else None


def judged_by(stage: JudgeConfig) -> set[str]:
    """What samples are to be judged by, as words of a tag."""
    return {*stage.features, *([f"bits:{stage.bits_images}"] if stage.bits_images else [])}


def training_data(model: ModelVersion) -> ShardSet | None:
    """What the model was trained on, and whatever was added since; None if it is there no more."""
    try:
        return open_shard_set(Folder(model.tags[URI_TAG]))
    except FileNotFoundError:
        return None


def run(stage: SampleStage, environment: Environment, model: ModelVersion) -> SampleRun:
    """Draw the pictures, or those that are missing, and log them with their metrics.

    A second call while the first is at work waits, and has what that made. Raises ValueError for settings that the
    model cannot serve.
    """
    check_storage(environment)
    key = sample_key(stage, model)
    with locked(environment, f"sample-{key}", wait_s=FOR_EVER):
        if (done := finished(stage, environment, model)) is not None:
            say(f"samples: reused {done.folder.uri}")
            return done
        files = model_files(model.uri, pull_model(model))
        check_sampler(stage, loaded(files))
        chosen_labels(stage.labels, loaded(files).classes)
        check_nets(environment, stage)
        with connected(environment, stage), exclusive(f"sample-{key}"):
            if (done := finished(stage, environment, model)) is not None:  # by another driver of this cluster
                return done
            workers = drawing_workers(stage)
            warm_up(draw_part, workers)
            tracker = Tracker(environment)
            run_id = tracker.start(model.name, "sample", key, lineage_tags(model), to_plain(stage))
            job = _Job(stage, environment, tracker, model, files, run_id, environment.samples(key), key, workers)
            with tracker.ending(run_id):
                job.work()
        return SampleRun(job.folder, tracker.run(run_id))


@dataclass(frozen=True)
class _Job:
    """A sample run at work."""

    stage: SampleStage
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
        stage, data, nets = self.stage, training_data(self.model), []
        if data is None:
            say(f"samples: not judged, the training data {self.model.tags[URI_TAG]} cannot be read")
        elif stage.features:
            nets = feature_nets(self.environment, self.tracker, stage, self.model.name, data)
        shards = self._draw(nets)
        self.folder.write_json("config.json", {"model": self.model.uri, "sample": to_plain(stage)})
        grid = self._grid(shards)
        if data is not None:
            self._show_data(data)
            if judged_by(stage):
                self._judge(shards, data, nets, grid)
        self._log_pictures(grid)
        self.folder.write(GRID, grid)

    def _draw(self, nets: Sequence[NetFile]) -> ShardSet:
        """The pictures as a shard set, of the same format as training data, and their features."""
        stage, model = self.stage, loaded(self.files)
        outs = [features_of(self.environment, net, self.key) for net in nets]
        if self.folder.exists(DATASET):
            return open_shard_set(self.folder)
        started, there = time.monotonic(), list[int]()

        def find(part: Part) -> ShardReport | None:
            report = read_report(self.folder, part.number)
            there.extend([] if report is None else [report.num_samples])
            complete = all(out.exists(file_of(tar_name("train", part.number))) for out in outs)
            return report if complete else None

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
        if num := stage.num - sum(there):  # those that an earlier attempt drew took none of this one's time
            self.tracker.log_metrics(self.run_id, {"images_per_s": num / (time.monotonic() - started)})
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
        num_columns = grid_columns(len(chosen_labels(self.stage.labels, shards.classes)))
        return encode_png(image_grid(images, num_columns, GRID_PIXELS))

    def _show_data(self, data: ShardSet) -> None:
        """How pictures of the data turn to noise."""
        real, _ = read_first(data, "train", FORWARD_IMAGES)
        states = forward_states(loaded(self.files).diffusion, real)
        self.folder.write(FORWARD, encode_png(strip(states, 2 * GRID_PIXELS)))

    def _judge(self, shards: ShardSet, data: ShardSet, nets: Sequence[NetFile], grid: bytes) -> None:
        """The metrics, onto the run and, if that is the very data it has learned from, onto the model's own page."""
        stage = self.stage
        self.tracker.log_dataset(self.run_id, self.model.name, data.digest, data.folder.uri, "reference")
        metrics = held_out_bits(self.files, data, stage.bits_images, stage) if stage.bits_images else {}
        if nets:
            measured = measure(self.environment, Subject(shards, "train", self.key), data, nets, stage, stage)
            self.folder.write(NEIGHBOURS, measured.neighbours)
            metrics |= measured.metrics
        own = data.digest == self.model.tags[DIGEST_TAG]
        self.tracker.log_metrics(self.run_id, metrics, model_id=self.model.model_id if own else "")
        self.tracker.tag(self.run_id, {JUDGED_TAG: " ".join(sorted(judged_by(stage)))})
        if own:
            describe(self.tracker, self.model, model_card(self.model, loaded(self.files), metrics), grid)
        else:
            say(f"samples: judged beside {data.folder.uri} as it is by now, to which was added since")

    def _log_pictures(self, grid: bytes) -> None:
        """Everything that is in the folder into MLflow, in as many calls as there are files: tars, not pictures."""
        with TemporaryDirectory() as temporary:
            samples = Path(temporary) / "samples"
            self.folder.download(samples)
            shutil.rmtree(samples / PLAN, ignore_errors=True)  # what came back from MLflow has none
            (samples / GRID).write_bytes(grid)
            for name in (GRID, *SHOWN):
                if (samples / name).exists():
                    (samples / name).rename(Path(temporary) / name)
            self.tracker.log_folder(self.run_id, Path(temporary))


SHOWN = (REVERSE_FILM, REVERSE_STRIP, FORWARD, NEIGHBOURS)


def grid_columns(num_classes: int) -> int:
    """About ten, with one class a column where there are few enough: the classes take turns."""
    return num_classes * max(1, 10 // num_classes) if 1 <= num_classes <= 16 else 10
