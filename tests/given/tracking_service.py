"""infra/mlflow_server.py as an operator starts it: real PostgreSQL, a real S3 server (moto), accounts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
from mlflow_servers import Server
from moto.server import ThreadedMotoServer

from workflows.cluster.local import free_ports

SCRIPT = Path(__file__).parents[2] / "infra/mlflow_server.py"
PASSWORD = "correct horse battery staple"
ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
BUCKET = "bucket"


class Store:
    """An S3 server with one bucket, until `stop`; `environment` is what its clients need."""

    def __init__(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.endpoint = f"http://127.0.0.1:{self._server.get_host_and_port()[1]}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1",
                                   aws_access_key_id="testing", aws_secret_access_key="testing")  # fmt: skip
        self.client.create_bucket(Bucket=BUCKET)

    def keys(self, prefix):
        """The names of all that lies under it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def stop(self):
        self._server.stop()


class TrackingService(Server):
    """The server, in a folder of its own, from `start` to `stop` or `kill`."""

    def __init__(self, store):
        self.folder = Path(tempfile.mkdtemp(prefix="ddpm-mlflow-", dir="/tmp"))
        self.folder.chmod(0o755)  # where we are root, PostgreSQL is somebody else, who has to get in
        port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, str(SCRIPT), str(self.folder)]
        self.environment = {
            **os.environ,
            **store.environment,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
        }
        self.start()

    def stop(self):
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=60) == 0

    def remove(self):
        """With all that it keeps."""
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)


def refusal(**environment):
    """What the script says, and its exit code, of a call that it refuses."""
    folder = tempfile.mkdtemp(prefix="ddpm-mlflow-", dir="/tmp")
    done = subprocess.run([sys.executable, SCRIPT, folder], env={**os.environ, **environment},
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    shutil.rmtree(folder)
    return done.returncode, done.stderr
