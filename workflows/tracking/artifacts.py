"""Files out of MLflow's artifact store, one by one: each is there whole and checked, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from diffusion.patience import patiently

from ..storage import JobFailed
from .refusals import soon_given_up

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
TRY_AGAIN_AFTER_S = (0.5, 2, 8)
"""MLflow itself does not ask again for a body that is cut"""


class Artifacts:
    """The files at a root URI of the artifact store, by their path below it. `title` is what they are, for errors.

    Finding out where they are takes MLflow a few calls; after that listing is one for each folder, fetching two for
    each file. Every method raises JobFailed if the store does not answer, or does not give what it has.
    """

    def __init__(self, uri: str, title: str) -> None:
        self.title = title
        self._repository = self._asked(lambda: get_artifact_repository(uri))

    def names(self, folder: str = "") -> list[str]:
        """The paths of all files in a folder, at any depth, sorted; none where there is no such folder."""
        found: list[str] = []
        for entry in self._asked(lambda: self._repository.list_artifacts(folder or None)):
            found += self.names(entry.path) if entry.is_dir else [entry.path]
        return sorted(found)

    def fetch(self, name: str, folder: Path, sha256: str = "", witness: str = "") -> Path:
        """Have the file at `folder`/`name`; what an earlier call left there is kept, if it has the sha256.

        With no sha256 to go by it is taken as it comes. Raises JobFailed, naming the file and the witness of the
        sha256, if what comes has another.
        """
        place = folder / name
        if place.exists() and sha256 in ("", sha256_of(place)):
            return place
        incoming = folder.with_name(f".{folder.name}.incoming")  # a file that is cut short never has its name
        incoming.mkdir(parents=True, exist_ok=True)
        came = Path(self._asked(lambda: self._repository.download_artifacts(name, str(incoming))))
        if sha256 and sha256_of(came) != sha256:
            came.unlink()
            raise self.damaged(f"{name} does not have the sha256 {witness}")
        place.parent.mkdir(parents=True, exist_ok=True)
        return came.replace(place)

    def damaged(self, what: str) -> JobFailed:
        """The error for files that are not what they should be."""
        return JobFailed(f"{self.title} is damaged: {what}; restore the file in the artifact store, or make it again")

    def _asked(self, call: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return call()
            except MlflowException as err:
                raise OSError(str(err).strip().rpartition("\n")[2]) from err

        try:
            with soon_given_up():
                return patiently(once, TRY_AGAIN_AFTER_S)
        except OSError as err:
            raise JobFailed(
                f"{self.title} cannot be had from MLflow ({err}); when it can, the same command goes on from here"
            ) from None


def sha256_of(file: Path) -> str:
    """In hex, of a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
