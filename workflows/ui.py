"""`ddpm ui`: MLflow's own web interface on our runs."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .progress import say

if TYPE_CHECKING:
    from .storage import Environment

ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a gigabyte of processes for jobs that we do not have
    "PYTHONWARNINGS": "ignore",  # MLflow's own dependencies warn each other at every start
}


def command(environment: Environment, port: int) -> list[str]:
    """The server's command line. Raises ValueError if there is a server already, or nothing to show."""
    uri = environment.mlflow_uri
    if uri.startswith("http"):
        raise ValueError(f"{uri} is an MLflow server: open it in a browser")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"storage must hold runs to look at; there is no {uri.removeprefix('sqlite:///')}")
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    serve = ["-m", "mlflow", "server", *place, "--backend-store-uri", uri]
    root = environment.artifact_root
    return [sys.executable, *serve, *(["--default-artifact-root", root] if root else [])]


def serve(environment: Environment, port: int) -> NoReturn:
    """Become the server, until it is interrupted. Raises ValueError if the port is taken."""
    argv = command(environment, port)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            raise ValueError(
                f"port must be free to listen on, got {port}: {err.strerror}; give another --port"
            ) from None
    say(f"MLflow at http://127.0.0.1:{port} in some seconds; Ctrl-C ends it")
    os.environ |= ENVIRONMENT
    os.execv(argv[0], argv)  # noqa: S606 - our own interpreter
