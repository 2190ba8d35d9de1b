"""`ddpm pull`: tracked models and samples, out of MLflow into a folder, whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from diffusion.checkpoint import load_model
from diffusion.data.shard_set import open_shard_set
from diffusion.data.tar import read_headers
from diffusion.diffusers_format import export_diffusers
from diffusion.files import Folder

from .tracking import Tracker, model_version, pull_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .storage import Environment

ModelFormat = Literal["safetensors", "diffusers"]
SampleFormat = Literal["png", "webdataset"]


def pull_model_to(environment: Environment, name: str, destination: Path, format_: ModelFormat) -> str:
    """Weights and config of a model (NAME, NAME@alias, NAME/version) into a new folder; the version's URI.

    As our own two files, or as a folder that diffusers opens. Raises ValueError if there is no such model, the
    destination is there already, or diffusers cannot have such a network.
    """
    model = model_version(Tracker(environment), name)
    files = pull_model(model)
    if format_ == "diffusers":
        loaded, files = load_model(files.__getitem__), {}
        export_diffusers(files.__setitem__, loaded)
    with _new_folder(destination) as folder:
        for file_name, data in files.items():
            (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file_name).write_bytes(data)
    return model.uri


def pull_samples_to(environment: Environment, run: str, destination: Path, as_: SampleFormat) -> str:
    """The pictures of a sample run (its id, or the name of a model for the newest) into a new folder; the run's id.

    As PNG files KEY.png (in a folder a class, where there are labels), or as the shard set that they are; every
    tar's sha256 is checked. Raises ValueError if there is no such run, or the destination is there already.
    """
    tracker = Tracker(environment)
    if tracker.is_empty:
        raise ValueError(f"there are no samples of {run!r}: nothing has been tracked in {tracker.uri} yet")
    tracked = tracker.latest(run, "sample") or tracker.run(run)
    with TemporaryDirectory() as temporary, _new_folder(destination) as folder:
        pictures = tracker.download(tracked.run_id, "samples", Path(temporary))
        shards = open_shard_set(Folder(pictures))
        for tar in shards.tars:
            data = shards.checked_tar(tar)
            if as_ == "png":
                labels = shards.manifest(tar, ["label"])["label"].to_pylist()
                images = [member for member in read_headers(data) if member.name.endswith(".png")]
                for member, label in zip(images, labels, strict=True):
                    home = folder / shards.classes[label] if label >= 0 else folder
                    home.mkdir(exist_ok=True)
                    (home / member.name).write_bytes(member.data(data))
        if as_ == "webdataset":
            shutil.copytree(pictures, folder, dirs_exist_ok=True)
    return tracked.run_id


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that takes its name when all is in it."""
    if destination.exists():
        raise ValueError(f"destination must not exist yet, got {destination}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as temporary:
        folder = Path(temporary) / destination.name
        folder.mkdir()
        yield folder
        folder.rename(destination)
