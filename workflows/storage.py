"""Where things are: the storage folder and what lies where in it, and one worker at a time on each thing."""

from __future__ import annotations

import fcntl
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from diffusion.files import Folder

from .progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_WAIT_S = 30.0
"""how long to wait for a lock: a killed driver's job needs some seconds to notice"""
FOR_EVER = math.inf
RETRY_S = 0.2


class JobFailed(RuntimeError):
    """The job was called rightly and could not do it: exit code 1, one line, no traceback."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The places that a command works with; what it makes does not depend on them."""

    storage: str = "./runs"
    """folder or URI under which everything lands"""
    address: str = ""
    """of a Ray cluster (host:port; for run also http://host:8265); empty: a local Ray"""
    tracking_uri: str = ""
    """of the MLflow server; empty: $MLFLOW_TRACKING_URI, else a SQLite file in the storage"""

    @property
    def flags(self) -> list[str]:
        """What a command needs to be told of them, where they are not the default."""
        flags = [] if self.storage == type(self)().storage else ["--storage", self.storage]
        return [*flags, "--tracking-uri", self.tracking_uri] if self.tracking_uri else flags

    @property
    def folder(self) -> Folder:
        """The storage folder."""
        return Folder(self.storage)

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI with its default resolved. Raises ValueError if remote storage leaves none."""
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri and not self.folder.is_local:
            raise ValueError(f"tracking_uri must be given with a remote storage such as {self.storage}")
        return uri or f"sqlite:///{self.folder.path}/mlflow.db"

    @property
    def artifact_root(self) -> str | None:
        """Where experiments keep their artifacts; None leaves it to an MLflow server."""
        return (self.folder / "mlflow-artifacts").uri if self.mlflow_uri.startswith("sqlite:") else None

    def data(self, name: str) -> Folder:
        """The shard set of this name."""
        return self.folder / "data" / name

    def training(self, key: str) -> Folder:
        """The checkpoints of the training run with this key."""
        return self.folder / "train" / key

    def samples(self, key: str) -> Folder:
        """The pictures of the sample run with this key."""
        return self.folder / "samples" / key

    def restored(self, key: str) -> Folder:
        """The pictures of the restore run with this key."""
        return self.folder / "restored" / key

    def features(self, name: str) -> Folder:
        """What is kept of features under this name, of a net or of what a net made of a set."""
        return self.folder / "features" / name


def check_storage(environment: Environment) -> None:
    """Make the storage folder if need be. Raises ValueError if it cannot be written."""
    try:
        environment.folder.write(".writable", b"")
        environment.folder.delete(".writable")
    except OSError as err:
        raise ValueError(f"storage must be a folder that can be written, got {environment.folder.uri}: {err}") from None


@contextmanager
def locked(environment: Environment, what: str, wait_s: float | None = None) -> Iterator[None]:
    """Be the only one to work on `what` (a stage and a name) in this storage. The kernel frees it when we die.

    Waits for so many seconds, LOCK_WAIT_S where nothing is said.

    Does nothing on remote storage, where the submission id of the Ray job excludes others. Raises JobFailed if
    another process keeps it for longer than `wait_s`.
    """
    if not environment.folder.is_local:
        yield
        return
    path = Path(environment.folder.path) / "locks" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path, wait_s=wait_s):
        yield


@contextmanager
def file_lock(path: Path, remove: bool = False, wait_s: float | None = None) -> Iterator[None]:
    """Be the only process to hold this file; `remove`: leave none behind. Raises JobFailed if another keeps it."""
    with _opened(path, wait_s) as lock:
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            if remove:
                path.unlink()


def _opened(path: Path, wait_s: float | None) -> IO[str]:
    """The file, locked, and still the one of that name: whoever had it may have removed it while we waited."""
    while True:
        lock = path.open("a+")
        try:
            _acquire(lock.fileno(), path, LOCK_WAIT_S if wait_s is None else wait_s)
            if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        except FileNotFoundError:
            pass
        except BaseException:
            lock.close()
            raise
        lock.close()


def held_locks(environment: Environment) -> list[str]:
    """What somebody works on now, this process included. Nothing is known of it on remote storage."""
    if not environment.folder.is_local:
        return []
    paths = sorted((Path(environment.folder.path) / "locks").glob("*.lock"))
    return [path.stem for path in paths if _is_held(path)]


def _is_held(path: Path) -> bool:
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _acquire(lock: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = path.read_text() or "unknown"
                raise JobFailed(
                    f"{path.stem} is being worked on by process {owner}; wait for it or end it, then run again"
                ) from None
            if wait_s > LOCK_WAIT_S and not told:
                told = True
                say(f"waiting for process {path.read_text() or 'unknown'}, which is at work on {path.stem}")
            time.sleep(RETRY_S)
        else:
            return
