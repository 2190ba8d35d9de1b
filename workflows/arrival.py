"""A local folder that arrives whole: put together beside its name, taken up again where an attempt ended."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .storage import file_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Arrival:
    """Where a folder is put together."""

    def __init__(self, partial: Path) -> None:
        self.kept = partial / "files"
        """what a next attempt of the same finds as this one left it"""
        self.whole = partial / "whole"
        """what becomes the destination: an empty folder to fill, unless it is set to another one in here"""


@contextmanager
def arriving(destination: Path, what: str) -> Iterator[Arrival]:
    """Around making a new folder: it takes its name, at once, when the work within is done.

    An attempt that is killed or fails leaves a hidden folder beside the destination, for the next one at the same
    `what`. Raises ValueError if the destination is there already, JobFailed if another process is at it.
    """
    _check_absent(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(destination.with_name(f".{destination.name}.lock"), remove=True):
        _check_absent(destination)  # somebody may just have been done with it
        left = f".{destination.name}.partial-"
        partial = destination.with_name(left + hashlib.sha256(what.encode()).hexdigest()[:12])
        arrival = Arrival(partial)
        empty = arrival.whole
        shutil.rmtree(empty, ignore_errors=True)
        empty.mkdir(parents=True)
        try:
            yield arrival
        except BaseException:
            with suppress(OSError):  # there is something to go on from
                empty.rmdir()
                partial.rmdir()
            raise
        os.sync()  # a power cut must not leave the name without the bytes
        arrival.whole.replace(destination)
        for old in destination.parent.iterdir():
            if old.name.startswith(left):
                shutil.rmtree(old)


def _check_absent(destination: Path) -> None:
    if destination.exists() or destination.is_symlink():
        raise ValueError(f"destination must not exist yet, got {destination}")
