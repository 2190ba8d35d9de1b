"""The samples of a run as MLflow has them: fetched into a folder, each file as `dataset.json` vouches for it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffusion.data.shard_set import DATASET, ShardSet, open_shard_set
from diffusion.data.verify import check_dataset
from diffusion.files import Folder

from .progress import Bar

if TYPE_CHECKING:
    from .tracking import Artifacts, Tracker

SAMPLES, GRID = "samples", "grid.png"
"""where a run's artifacts have the shard set; what is written last into its folder, which so has everything"""
PICTURES = (".png", ".gif")


def fetch_samples(artifacts: Artifacts, names: list[str], folder: Path) -> ShardSet:
    """The shard set of a sample run in a local folder, under `samples/`: what is vouched for, and nothing else.

    `names` are those of its artifacts. Raises JobFailed, naming the file, if one is missing or damaged.
    """
    (folder / SAMPLES / DATASET).unlink(missing_ok=True)  # it vouches for the others: always that of the store
    artifacts.fetch(f"{SAMPLES}/{DATASET}", folder)
    local = Folder(folder / SAMPLES)
    for difference in check_dataset(local):
        raise artifacts.damaged(f"{difference.file} {difference.what}")
    shards = open_shard_set(local)
    wanted = {**shards.parts, **{tar.name: tar.sha256 for tar in shards.tars}}
    with Bar("pull", len(wanted), "file") as bar:
        for number, (name, sha256) in enumerate(wanted.items(), start=1):
            if f"{SAMPLES}/{name}" not in names:
                raise artifacts.damaged(f"{SAMPLES}/{name} is missing")
            artifacts.fetch(f"{SAMPLES}/{name}", folder, sha256, f"of {DATASET}")
            bar.update(number)
    return shards


def bring_back(tracker: Tracker, run_id: str, folder: Folder) -> None:
    """All of a sample run from MLflow to its place in the storage, which every node reaches; what completes it, last.

    Raises JobFailed, as `fetch_samples`.
    """
    artifacts = tracker.artifacts(run_id)
    names = artifacts.names()
    with TemporaryDirectory() as temporary:
        fetched = fetch_samples(artifacts, names, Path(temporary))
        for name in (*fetched.parts, *(tar.name for tar in fetched.tars), DATASET):
            folder.write(name, (Path(temporary) / SAMPLES / name).read_bytes())
        pictures = [name for name in names if "/" not in name and name.endswith(PICTURES)]
        for name in sorted(pictures, key=lambda name: name == GRID):
            folder.write(name, artifacts.fetch(name, Path(temporary)).read_bytes())
