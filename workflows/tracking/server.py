"""Whether there is an MLflow to track in, and whether it lets us in: known in seconds, before anything is made."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

if TYPE_CHECKING:
    from ..storage import Environment

TIMEOUT_S = 10
TRACKING_URIS = ("sqlite:///", "http://", "https://", "postgresql", "mysql")
UNAUTHORIZED, FORBIDDEN = 401, 403


def check_server(environment: Environment) -> None:
    """Raises ValueError if the tracking URI is of a kind that cannot work, or a server's that does not let us in."""
    uri = environment.mlflow_uri
    if not uri.startswith(TRACKING_URIS):
        raise ValueError(f"tracking_uri must begin with one of {', '.join(TRACKING_URIS)}, got {uri!r}")
    if not uri.startswith("http"):
        return
    if "@" in urlsplit(uri).netloc:
        raise ValueError(
            "tracking_uri must hold no password, which a job's command line would show: "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    _check_answers(uri)
    _check_access(uri)


def _check_answers(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):  # noqa: S310 - http(s) only
            pass
    except (urllib.error.URLError, OSError, ValueError) as err:
        reason = getattr(err, "reason", err)
        raise ValueError(f"tracking_uri must be an MLflow server that answers; {uri} does not: {reason}") from None


def _check_access(uri: str) -> None:
    """By the smallest question that MLflow answers to those whom it knows only, asked as its own client asks."""
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            max_retries=0,
            timeout=TIMEOUT_S,
            raise_on_status=False,
        )
    except MlflowException as err:
        raise ValueError(f"tracking_uri must be an MLflow server that answers; {uri} does not: {err}") from None
    if answer.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise ValueError(
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD must be those of an account at "
            f"{uri}, which refuses what it was given"
        )
    if not answer.ok:
        raise ValueError(f"tracking_uri must be an MLflow server; {uri} answers {answer.status_code} {answer.reason}")
