"""Real MLflow servers: of tracking, which can go and come back with all that it knew, and of a model."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from waiting import wait_for

from workflows.cluster.local import free_ports
from workflows.storage import Environment
from workflows.ui import ENVIRONMENT, command


class Server:
    """A command that serves HTTP at `uri` from `start` to `stop`; it is up when `{uri}/health` answers."""

    uri: str
    command: list[str]
    environment: dict[str, str] | None = None

    def start(self):
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(self._answers, self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self):
        if self.process.poll() is not None:
            return
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait()

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


class ModelServer(Server):
    """`mlflow models serve` of a model, on a free port."""

    def __init__(self, model, tracking_uri):
        port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        serve = ["models", "serve", f"--model-uri={model}", "--env-manager=local", f"--port={port}"]
        self.command = [sys.executable, "-m", "mlflow", *serve]
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where it looks for uvicorn
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        self.start()


class TrackingServer(Server):
    """On a free port, with its database and artifacts in a folder; it runs until `stop`."""

    def __init__(self, folder):
        port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        store = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
        self.command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", *store]
        self.environment = {**os.environ, **ENVIRONMENT}
        self.start()


class Interface(Server):
    """What `ddpm ui` becomes, on a free port, of the runs in a storage folder."""

    def __init__(self, storage):
        port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        self.command = [*command(Environment(storage=str(storage)), port)]
        self.environment = {**os.environ, **ENVIRONMENT}
        self.start()
