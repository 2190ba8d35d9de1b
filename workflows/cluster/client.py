"""A client of a cluster's Jobs API: Ray's own, whose refusals are one line each."""

from __future__ import annotations

import os
import platform
from http import HTTPStatus
from typing import Any, NoReturn

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ..storage import JobFailed


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
