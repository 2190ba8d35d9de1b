"""Where a training run's checkpoints lie, and which one to go on from.

RUN/attempt-N/step-00000500/: every attempt writes under its own folder, so that a late write of an older one
cannot hurt. All attempts of a run would write the same numbers: the highest whole step is the one to take.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import TYPE_CHECKING

import safetensors.torch

from diffusion.checkpoint import COMMIT, Checkpoint, load_checkpoint, read_tensors, save_checkpoint
from diffusion.ema import Snapshot

from ..progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.files import Folder


def begin_attempt(run: Folder) -> int:
    """The number of a new attempt, one above all there are; its folder says which process it is."""
    attempt = 1 + max(map(_number, _attempts(run)), default=0)
    run.write_json(f"attempt-{attempt}/attempt.json", {"host": socket.gethostname(), "pid": os.getpid()})
    return attempt


def write_checkpoint(run: Folder, attempt: int, checkpoint: Checkpoint, keep: int) -> Folder:
    """Save a checkpoint of this attempt, then remove all but the newest `keep` up to its step; where it now is.

    One of a higher step than is being written was found damaged, or is a slower attempt's: it does not count.
    """
    folder = run / f"attempt-{attempt}/step-{checkpoint.step:08d}"
    save_checkpoint(folder.write, checkpoint)
    written = f"step-{checkpoint.step:08d}"
    for name in [name for name in _newest_first(run) if name.rpartition("/")[2] <= written][keep:]:
        run.delete(f"{name}/{COMMIT}")  # first: what is half deleted must not look whole
        run.delete(name)
    return folder


def newest_checkpoint(run: Folder) -> Checkpoint | None:
    """The newest checkpoint that is whole, if there is one; those that are not are named and passed over."""
    for name in _newest_first(run):
        try:
            return load_checkpoint((run / name).read)
        except ValueError as err:
            say(f"train: passing over {run.uri}/{name}: {err}")
    return None


def newest_name(run: Folder) -> str:
    """Where the newest committed checkpoint is, in the run's folder; "" if there is none. It is not looked into."""
    return next(iter(_newest_first(run)), "")


def time_of_progress(run: Folder, step: int) -> float:
    """When the checkpoint of this step was whole, in seconds since 1970; of step 0, when the first attempt began.

    Now, where the storage does not say.
    """
    found = [f"{name}/{COMMIT}" for name in _newest_first(run) if name.endswith(f"/step-{step:08d}")]
    found += [f"{attempt}/attempt.json" for attempt in sorted(_attempts(run), key=_number)]
    written = run.fs.get_file_info(run.at(found[0])).mtime_ns
    return time.time() if written is None else written / 1e9


def stop_launch(run: Folder, launch: str, reason: str) -> None:
    """Put down why the attempts of this launch (a driver's call) are to end: the next would meet the same."""
    run.write_json(f"stopped/{launch}.json", {"reason": reason})


def reason_to_stop(run: Folder, launch: str) -> str:
    """What `stop_launch` put down; "" if nothing."""
    name = f"stopped/{launch}.json"
    return str(run.read_json(name)["reason"]) if run.exists(name) else ""


def write_snapshots(run: Folder, step: int, averages: dict[float, dict[str, Tensor]]) -> None:
    """Save the power-function averages of this step, by their width. Every attempt would write the same ones."""
    for std, weights in averages.items():
        data = safetensors.torch.save({name: weight.cpu().contiguous() for name, weight in weights.items()})
        run.write(_snapshot_name(Snapshot(std, step)), data)


def snapshots(run: Folder) -> list[Snapshot]:
    """The averages that were saved, by time and width."""
    found = filter(None, map(SNAPSHOT_NAME.fullmatch, run.names("snapshots")))
    return sorted((Snapshot(float(m[2]), int(m[1])) for m in found), key=lambda one: (one.num_updates, one.std))


def read_snapshot(run: Folder, snapshot: Snapshot) -> dict[str, Tensor]:
    """The averages by parameter name. Raises ValueError if the file is damaged."""
    name = _snapshot_name(snapshot)
    return read_tensors(run.read(name), f"{run.uri}/{name}")


def _snapshot_name(snapshot: Snapshot) -> str:
    return f"snapshots/{snapshot.num_updates:08d}-{snapshot.std!r}.safetensors"


SNAPSHOT_NAME = re.compile(r"(\d{8,})-([0-9.e-]+)\.safetensors")


def _attempts(run: Folder) -> list[str]:
    return [name for name in run.names() if name.startswith("attempt-")]


def _number(attempt: str) -> int:
    return int(attempt.removeprefix("attempt-"))


def _newest_first(run: Folder) -> list[str]:
    """Committed checkpoints as attempt-N/step-S, the highest step first."""
    found = [
        (name, attempt)
        for attempt in _attempts(run)
        for name in run.names(attempt)
        if name.startswith("step-") and run.exists(f"{attempt}/{name}/{COMMIT}")
    ]
    order = sorted(found, key=lambda item: (item[0], _number(item[1])), reverse=True)
    return [f"{attempt}/{name}" for name, attempt in order]
