"""A real MLflow server, which can go, and come back with all that it knew."""

import subprocess
import sys
import urllib.error
import urllib.request

import psutil
from waiting import wait_for

from workflows.local_ray import free_ports


class TrackingServer:
    """On a free port, with its database and artifacts in a folder; it runs until `stop`."""

    def __init__(self, folder):
        port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        store = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
        self.command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", *store]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers)

    def stop(self):
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait()

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False
