"""Commands as processes of a daemon: each with a log of its own, none outliving the daemon."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

END_BYTES = 4096
"""of a log, in which its last line is looked for"""
MAX_LINE = 500
"""characters of it that are kept"""


class Run(Protocol):
    """A command at work, or not any more."""

    is_left: bool
    """by a daemon that is gone: how it ends is not known"""

    def poll(self) -> int | None:
        """Its exit code; None while it is at work."""

    def stop(self) -> None:
        """Tell it to end."""

    def last_line(self) -> str:
        """Of what it said so far."""


class Launcher:
    """Starts commands; their logs are under a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log_of(self, name: str, tick: datetime) -> str:
        """Where what is said at a schedule's tick is kept."""
        return str(self._folder.absolute() / name / f"{tick:%Y-%m-%dT%H-%M-%SZ}.log")

    def start(self, command: Sequence[str], log: str) -> Run:
        """Run `ddpm COMMAND`. Raises OSError if that is impossible."""
        return _Child(command, Path(log))

    def left(self, log: str) -> Run:
        """What an earlier daemon ran: at work as long as anybody writes this log."""
        return _Left(Path(log))


class _Child:
    is_left = False

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # goes with the open file, so it lasts as long as the command
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workflows.leashed", *command],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the daemon, who tells
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()

    def last_line(self) -> str:
        return last_line(self._log)


class _Left:
    is_left = True

    def __init__(self, log: Path) -> None:
        self._log = log

    def poll(self) -> int | None:
        return None if _is_written(self._log) else 0

    def stop(self) -> None:
        """It was told by its daemon's end."""

    def last_line(self) -> str:
        return last_line(self._log)


def _is_written(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was never begun, or on another host
        return False
    return False


def last_line(log: Path) -> str:
    """The last line of a file that is not empty, "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
            end = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", end)]  # progress bars return the carriage
    return next((line[:MAX_LINE] for line in reversed(lines) if line), "")
