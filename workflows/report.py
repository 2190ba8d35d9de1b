"""`ddpm report`: everything there is to see of a sample run on one page, beside the run in MLflow and as a file."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.data.layout import part_name
from diffusion.data.shard_set import DATASET, open_shard_set
from diffusion.files import Folder
from diffusion.loss_by_time import NUM_PARTS

from .lineage import HEX, lineage, lines
from .pages.curves import Curve
from .pages.page import Picture, Report, page
from .pages.sheet import LOOK_AT, sheet
from .progress import say
from .tracking import (
    DIGEST_TAG,
    MODEL_TAG,
    OUTCOME_TAG,
    REASONS_TAG,
    STAGE_TAG,
    TRAINING_TAG,
    URI_TAG,
    TrackedRun,
    Tracker,
    find_version,
    model_version,
)

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

    from .storage import Environment

NAME = "report.html"
DATA_ROWS, SAMPLE_ROWS = 6, 10
PICTURES = {
    "forward": ("forward.png", "A real picture on its way into noise", "From left to right, more and more noise."),
    "reverse": ("reverse.gif", "Noise that becomes pictures, animated", "From noise to samples, over and over."),
    "strip": ("reverse.png", "Samples on their way out of noise", "A sample a row, from noise to the picture."),
    "neighbours": ("neighbours.png", "Samples, and below each its nearest training picture", ""),
}
"""the fields of a report, the artifacts that they are, and what they show"""
MAIN = ("steps", "global_batch", "lr", "precision", "num_workers", "seed")
"""of the settings of a training"""
TIMES = {
    "images_per_s": ("images a second", ",.3g"),
    "data_wait": ("of the time: waiting for data", ".1%"),
    "checkpoint_wait": ("of the time: waiting for checkpoints", ".1%"),
    "mfu": ("of the device's arithmetic: in use", ".1%"),
}
"""metrics of how fast a run was: what they say, and how they are written"""
GRID = ("grid.png", "A grid of samples", "The first samples of the run, in their order.")


@dataclass(frozen=True)
class MadeReport:
    """A page that was made."""

    run_id: str
    uri: str
    """of the file"""


def run(environment: Environment, name: str, out: str = "", also: str = "") -> MadeReport:
    """Make the page of a sample run (its id, or the name of a model for the newest), into MLflow and into a file.

    `also` is another run that is to have it. `out` is the file; default STORAGE/reports/RUN.html. Raises ValueError if
    there is no such run, or it is of another stage or did not come to its end.
    """
    tracker = Tracker(environment)
    tracked = find_sample_run(tracker, name)
    html = page(collect(environment, tracker, tracked)).encode()
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / NAME
        file.write_bytes(html)
        for run_id in filter(None, (tracked.run_id, also)):
            tracker.log_file(run_id, file)
    file_at = Folder(out) if out else environment.folder / "reports" / f"{tracked.run_id}.html"
    file_at.parent.write(file_at.name, html)
    return MadeReport(tracked.run_id, file_at.uri)


def find_sample_run(tracker: Tracker, name: str) -> TrackedRun:
    """A finished sample run, by its id or as the newest of a model."""
    if tracker.is_empty:
        raise ValueError(f"there are no samples of {name!r}: nothing has been tracked in {tracker.uri} yet")
    if not HEX.fullmatch(name):
        newest = tracker.latest(name, "sample")
        if newest is None:
            raise ValueError(f"there are no samples of {name!r} in {tracker.uri}; draw some: ddpm sample --name {name}")
        return newest
    tracked = tracker.run(name)
    if (stage := tracked.tags.get(STAGE_TAG, "none of ours")) != "sample":
        raise ValueError(f"run must be a sample run to report on; the stage of {name} is {stage}")
    if tracked.status != "FINISHED":
        raise ValueError(f"run must have come to its end to report on; {name} is {tracked.status}")
    return tracked


def collect(environment: Environment, tracker: Tracker, tracked: TrackedRun) -> Report:
    """All that is known of a sample run. What is gone by now is not there, and stops nothing."""
    model, training_id = tracked.tags[MODEL_TAG], tracked.tags[TRAINING_TAG]
    data, data_words = _data(tracker, tracked)
    training = tracker.run(training_id) if tracker.has_run(training_id) else None
    tree: list[str] = []
    with suppress(ValueError):  # its model or its data's run was deleted in MLflow
        tree = lines(*lineage(environment, tracked.run_id))
    with TemporaryDirectory() as temporary:
        pictures, samples = _pictures(tracker, tracked.run_id, Path(temporary))
    return Report(
        model=model,
        run_id=tracked.run_id,
        made=_made(tracked, training),
        data=data,
        data_words=data_words,
        losses=_losses(tracker, training),
        samples=samples,
        metrics=tracked.metrics,
        chain=[
            ("Data, by its digest", tracked.tags[DIGEST_TAG]),
            ("Training run", training_id),
            ("Model version", model),
            ("Sample run", tracked.run_id),
        ],
        tree=tree,
        settings={**_decision(tracker, model), **_settings(tracked, training)},
        commands=_commands(environment, tracked),
        **pictures,
    )


def _data(tracker: Tracker, tracked: TrackedRun) -> tuple[Picture | None, str]:
    """The contact sheet of the training data with what it is, or why there is none."""
    uri = ""
    try:
        uri = model_version(tracker, tracked.tags[MODEL_TAG]).tags[URI_TAG]
        shards = open_shard_set(Folder(uri))
        seen = shards.spread("train", LOOK_AT)
        picture = sheet(shards, seen, "A contact sheet of training pictures", "training pictures", DATA_ROWS)
    except (ValueError, OSError) as err:
        return None, f"The training data {uri} cannot be read any more: {err}"
    shape = f"{shards.image_size}x{shards.image_size} {'grey' if shards.channels == 1 else 'colour'} pictures"
    of = f" of {len(shards.classes)} classes, a column each" if picture.heads else ""
    since = "" if shards.digest == tracked.tags[DIGEST_TAG] else " The set was added to since this model was trained."
    return picture, f"They are {shape}{of}.{since}"


def _pictures(tracker: Tracker, run_id: str, temporary: Path) -> tuple[dict[str, Picture], Picture | None]:
    """The pictures among a run's artifacts by the report's fields, and its samples: by class where it can be told."""
    there = tracker.artifact_names(run_id)

    def artifact(name: str, alt: str, caption: str) -> Picture:
        return Picture(tracker.download(run_id, name, temporary).read_bytes(), alt, caption=caption)

    pictures = {part: artifact(*what) for part, what in PICTURES.items() if what[0] in there}
    grid = artifact(*GRID) if GRID[0] in there else None
    if "samples" in there:
        try:
            shards = _first_tars(tracker, run_id, temporary)
            first = range(min(LOOK_AT, shards.num_samples("train")))
            by_class = sheet(shards, first, "Samples of the run, by class", "samples", SAMPLE_ROWS)
            return pictures, by_class if by_class.heads or grid is None else grid
        except (ValueError, OSError) as err:
            say(f"report: the samples cannot be laid out by class: {err}")
    return pictures, grid


def _first_tars(tracker: Tracker, run_id: str, temporary: Path) -> ShardSet:
    """The run's samples, of which only as many tars are here as the sheet looks at."""
    folder = temporary / "first"

    def fetch(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tracker.download(run_id, f"samples/{name}", temporary).rename(folder / name)  # it may come without its folder

    fetch(DATASET)
    shards, num = open_shard_set(Folder(folder)), 0
    for tar in shards.split("train"):
        if num < LOOK_AT:
            fetch(tar.name)
            fetch(part_name("manifest", tar.shard))
            num += tar.num_samples
    return shards


def _losses(tracker: Tracker, training: TrackedRun | None) -> list[Curve]:
    """The curves of a training: its loss, then that of each quarter of the times."""
    if training is None:
        return []
    parts = {f"loss_t{i}": (_quarter(i), f"t{i}") for i in range(1, NUM_PARTS + 1)}
    names = {"loss": ("all times", "all"), **parts}
    return [
        Curve(full, label, points)
        for name, (full, label) in names.items()
        if (points := tracker.history(training.run_id, name))
    ]


def _quarter(number: int) -> str:
    """The name of a quarter of the times, of which the first has the least noise."""
    extreme = {1: ", the least noise", NUM_PARTS: ", the most noise"}.get(number, "")
    return f"t{number}: quarter {number} of the times{extreme}"


def _made(tracked: TrackedRun, training: TrackedRun | None) -> str:
    """What was drawn by what, in a sentence."""
    num, steps, sampler = (tracked.params.get(name, "?") for name in ("num", "steps", "sampler"))
    trained = f", after {int(training.params['train.steps']):,} steps of training" if training else ""
    return f"{int(num):,} pictures, each drawn out of noise in {steps} steps of {sampler}{trained}."


def _decision(tracker: Tracker, model: str) -> dict[str, dict[str, str]]:
    """What became of the model as a candidate, as a table; none if nobody has decided yet."""
    name, _, number = model.removeprefix("models:/").rpartition("/")
    version = find_version(tracker, name, number)
    if version is None or OUTCOME_TAG not in version.tags:
        return {}
    why = "; ".join(json.loads(version.tags[REASONS_TAG]))
    return {"The decision": {"outcome": version.tags[OUTCOME_TAG], "why": why}}


def _settings(tracked: TrackedRun, training: TrackedRun | None) -> dict[str, dict[str, str]]:
    """Tables of what each run was told and how fast it was."""
    tables = {"Drawing": _times(tracked) | _told(tracked)}
    if training is not None:
        tables["Training"] = _times(training) | _told(training, *(f"train.{name}" for name in MAIN))
        tables["All settings of the training"] = _told(training, "train.", "model.", "diffusion.")
    return tables


def _times(run: TrackedRun) -> dict[str, str]:
    took = {} if run.seconds is None else {"took": _in_words(run.seconds)}
    return took | {said: format(run.metrics[name], how) for name, (said, how) in TIMES.items() if name in run.metrics}


def _told(run: TrackedRun, *prefixes: str) -> dict[str, str]:
    """A run's settings, or those with names that begin so; what was left empty is not shown."""
    said = {name: value for name, value in run.params.items() if value not in ("", "None")}
    return {name: value for name, value in said.items() if not prefixes or name.startswith(prefixes)}


def _in_words(seconds: float) -> str:
    """A duration for people: 4 s, 3 min 20 s, 5 h 2 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _commands(environment: Environment, tracked: TrackedRun) -> list[tuple[str, str]]:
    """What gets the pictures, the model and the story of this very run, as it is typed."""
    name = tracked.tags[MODEL_TAG].removeprefix("models:/")
    flags = shlex.join(environment.flags)

    def typed(*words: str) -> str:
        return f"ddpm {shlex.join(words)} {flags}".rstrip()

    loads = f'import mlflow\n\nmlflow.set_tracking_uri("{environment.mlflow_uri}")\n'
    return [
        ("These samples, as PNG files", typed("pull", "samples", tracked.run_id, "./samples")),
        ("The model's weights and config", typed("pull", "model", name, "./model")),
        ("More samples, with other seeds", typed("sample", "--model", tracked.tags[MODEL_TAG], "--seed", "1")),
        ("What came of what", typed("lineage", tracked.run_id)),
        ("All runs, in MLflow's own interface", typed("ui")),
        (
            "The same samples with MLflow alone, in Python",
            f'{loads}mlflow.artifacts.download_artifacts(run_id="{tracked.run_id}", dst_path="./run")',
        ),
    ]
