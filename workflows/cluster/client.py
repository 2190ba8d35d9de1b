"""A client of a cluster's Jobs API: Ray's own, whose refusals are one line each."""

from __future__ import annotations

import os
import platform
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ..storage import JobFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_WAIT_S, HEAD_TRIES = 0.25, 40


class Refused(JobFailed):
    """A cluster answered that it cannot, or will not."""

    def __init__(self, address: str, status: int, text: str) -> None:
        lines = [line for line in text.splitlines() if line.strip()]  # Ray sends tracebacks; proxies, pages
        said = lines[-1] if lines and "<html" not in text.lower() else HTTPStatus(status).phrase
        super().__init__(f"the Ray cluster at {address} answered {status}: {said}")
        self.status, self.text = status, text


class WantsToken(ValueError):
    """A cluster does not take our token, or wants one."""


class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray is not typed
    """Raises Refused where Ray's raises RuntimeError with all that the cluster said."""

    def _do_request(self, *words: Any, **named: Any) -> Any:
        try:
            return super()._do_request(*words, **named)
        except AuthenticationError:
            raise WantsToken(
                f"the Ray cluster at {self._address} wants its token, got none or another: set RAY_AUTH_MODE=token, "
                f"and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None

    def _raise_error(self, r: Any) -> NoReturn:
        raise Refused(self._address, r.status_code, r.text)


def open_client(address: str) -> Client:
    """A client of the cluster's Jobs API.

    Raises ValueError if nobody answers there, if we may not ask, or if its Ray or Python is another than ours.
    """
    # Ray would prefer these to the address that it is given.
    aside = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        client = Client(address)
        versions = client._do_request("GET", "/api/v0/cluster_metadata").json()["data"]
    except WantsToken:
        raise
    except (ConnectionError, OSError, RuntimeError, ValueError, LookupError) as err:
        said = (str(err).splitlines() or [type(err).__name__])[0]
        raise ValueError(f"no Ray cluster answers at address {address}: {said}") from None
    finally:
        os.environ.update(aside)
    check_versions(address, versions["rayVersion"], versions["pythonVersion"])
    return client


def check_versions(address: str, ray_version: str, python_version: str) -> None:
    """Raises ValueError if a cluster of these cannot work with us: the same Ray, and the same Python but its patch."""
    ours = f"Ray {ray.__version__} on Python {platform.python_version()}"
    if ray_version != ray.__version__ or python_version.split(".")[:2] != platform.python_version().split(".")[:2]:
        raise ValueError(
            f"the cluster at {address} must have {ours} as this machine has, got Ray {ray_version} on Python "
            f"{python_version}"
        )


def folder_on(client: Client) -> str:
    """Where our jobs work there: in our folder, if the head is on this machine; else "", where it was started."""
    return str(Path.cwd()) if is_here(client) else ""


def is_here(client: Client) -> bool:
    """Whether a cluster's head is on this machine, and sees the files that we see. An address does not tell.

    The folder of Ray's session, of which the head knows the path, is named by its start to the microsecond.
    """
    session: str = client._do_request("GET", "/api/version").json()["session_name"]
    usual = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / session  # noqa: S108 - that is Ray's
    return usual.exists() or any(folder.name == session and folder.exists() for folder in _sessions(client))


def _sessions(client: Client) -> Iterator[Path]:
    """The session's folder on the head, where that is told; a head that has just begun may not know of itself yet."""
    for _ in range(HEAD_TRIES):
        told = client._do_request("GET", "/nodes?view=summary&nocache=1")
        if told.status_code != HTTPStatus.OK:
            return
        nodes = [node["raylet"] for node in told.json()["data"]["summary"]]
        if heads := [node for node in nodes if node.get("isHeadNode")]:
            yield from (Path(node["sessionDir"]) for node in heads if node.get("sessionDir"))
            return
        time.sleep(HEAD_WAIT_S)
