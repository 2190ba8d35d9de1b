"""Where a training run's checkpoints lie, and which one to go on from.

RUN/attempt-N/step-00000500/: every attempt writes under its own folder, so that a late write of an older one
cannot hurt. All attempts of a run would write the same numbers: the highest whole step is the one to take.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from diffusion.checkpoint import COMMIT, Checkpoint, load_checkpoint, save_checkpoint

from .progress import say

if TYPE_CHECKING:
    from diffusion.files import Folder


def begin_attempt(run: Folder) -> int:
    """The number of a new attempt, one above all there are; its folder says which process it is."""
    attempt = 1 + max((int(name.removeprefix("attempt-")) for name in _attempts(run)), default=0)
    run.write_json(f"attempt-{attempt}/attempt.json", {"host": socket.gethostname(), "pid": os.getpid()})
    return attempt


def write_checkpoint(run: Folder, attempt: int, checkpoint: Checkpoint, keep: int) -> None:
    """Save a checkpoint of this attempt, then remove all but the newest `keep` up to its step.

    One of a higher step than is being written was found damaged, or is a slower attempt's: it does not count.
    """
    folder = run / f"attempt-{attempt}/step-{checkpoint.step:08d}"
    save_checkpoint(folder.write, checkpoint)
    written = f"step-{checkpoint.step:08d}"
    for name in [name for name in _newest_first(run) if name.rpartition("/")[2] <= written][keep:]:
        run.delete(f"{name}/{COMMIT}")  # first: what is half deleted must not look whole
        run.delete(name)


def newest_checkpoint(run: Folder) -> Checkpoint | None:
    """The newest checkpoint that is whole, if there is one; those that are not are named and passed over."""
    for name in _newest_first(run):
        try:
            return load_checkpoint((run / name).read)
        except ValueError as err:
            say(f"train: passing over {run.uri}/{name}: {err}")
    return None


def _attempts(run: Folder) -> list[str]:
    return [name for name in run.names() if name.startswith("attempt-")]


def _newest_first(run: Folder) -> list[str]:
    """Committed checkpoints as attempt-N/step-S, the highest step first."""
    found = [
        (name, attempt)
        for attempt in _attempts(run)
        for name in run.names(attempt)
        if name.startswith("step-") and run.exists(f"{attempt}/{name}/{COMMIT}")
    ]
    order = sorted(found, key=lambda item: (item[0], int(item[1].removeprefix("attempt-"))), reverse=True)
    return [f"{attempt}/{name}" for name, attempt in order]
