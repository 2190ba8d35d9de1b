"""`ddpm ui`: MLflow's own web interface on our runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from .storage import check_storage

if TYPE_CHECKING:
    from .storage import Environment


def command(environment: Environment, port: int) -> list[str]:
    """The server's command line. Raises ValueError if the tracking URI is a server of its own already."""
    uri = environment.mlflow_uri
    if uri.startswith("http"):
        raise ValueError(f"{uri} is an MLflow server: open it in a browser")
    serve = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    root = environment.artifact_root
    return [sys.executable, *serve, *(["--default-artifact-root", root] if root else [])]


def serve(environment: Environment, port: int) -> NoReturn:
    """Become the server, until it is interrupted."""
    check_storage(environment)
    argv = command(environment, port)
    os.execv(argv[0], argv)  # noqa: S606 - our own interpreter
