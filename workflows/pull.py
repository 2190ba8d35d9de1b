"""`ddpm pull`: tracked models and samples, out of MLflow into a folder, whole or not at all.

What comes is checked against the hashes that it was logged with. A pull that is killed, or whose connection breaks,
goes on from the last whole file when it is called again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffusion.checkpoint import load_model
from diffusion.data.export import export_npz, export_png
from diffusion.data.shard_set import DATASET
from diffusion.diffusers_format import export_diffusers

from .arrival import arriving
from .logged_samples import SAMPLES, fetch_samples
from .tracking import Tracker, model_version, pull_model_into

if TYPE_CHECKING:
    from pathlib import Path

    from .storage import Environment
    from .tracking import TrackedRun

ModelFormat = Literal["safetensors", "diffusers"]
SampleFormat = Literal["png", "webdataset", "npz"]


def pull_model_to(environment: Environment, name: str, destination: Path, format_: ModelFormat) -> str:
    """Weights and config of a model (NAME, NAME@alias, NAME/version) into a new folder; the version's URI.

    As our own two files, or as a folder that diffusers opens. Raises ValueError if there is no such model, the
    destination is there already, or diffusers cannot have such a network; JobFailed if the model is damaged.
    """
    model = model_version(Tracker(environment), name)
    with arriving(destination, f"{model.uri} {model.model_id}") as arrival:
        files = pull_model_into(model, arrival.kept)
        if format_ == "diffusers":
            loaded, files = load_model(files.__getitem__), {}
            export_diffusers(files.__setitem__, loaded)
        for file_name, data in files.items():
            (arrival.whole / file_name).parent.mkdir(parents=True, exist_ok=True)
            (arrival.whole / file_name).write_bytes(data)
    return model.uri


def pull_samples_to(environment: Environment, run: str, destination: Path, as_: SampleFormat) -> str:
    """The pictures of a sample run (its id, or the name of a model for the newest) into a new folder; the run's id.

    As PNG files KEY.png (in a folder a class, where there are labels), as the shard set that they are, or as arrays in
    `samples.npz`. Raises ValueError if there is no such run, or the destination is there already; JobFailed, naming
    the file, if one is damaged.
    """
    tracker = Tracker(environment)
    tracked = _sample_run(tracker, run)
    artifacts = tracker.artifacts(tracked.run_id)
    names = artifacts.names(SAMPLES)
    if f"{SAMPLES}/{DATASET}" not in names:
        raise ValueError(f"run must be one that has drawn samples, got {run!r}, which has no {SAMPLES}/{DATASET}")
    with arriving(destination, tracked.run_id) as arrival:
        shards = fetch_samples(artifacts, names, arrival.kept)
        if as_ == "webdataset":
            arrival.whole = arrival.kept / SAMPLES
        else:
            {"png": export_png, "npz": export_npz}[as_](shards, arrival.whole)
    return tracked.run_id


def _sample_run(tracker: Tracker, run: str) -> TrackedRun:
    """The run of this id, or the newest of this name. Raises ValueError, with the names that there are, if none is."""
    if tracker.is_empty:
        raise ValueError(f"there are no samples of {run!r}: nothing has been tracked in {tracker.uri} yet")
    if (tracked := tracker.latest(run, "sample")) is not None:
        return tracked
    if tracker.has_run(run):
        return tracker.run(run)
    names = tracker.names("sample")
    known = f"there are samples of: {', '.join(names)}" if names else "nobody has drawn any"
    raise ValueError(f"there are no samples of {run!r} in {tracker.uri}, nor is it the id of a run; {known}")
