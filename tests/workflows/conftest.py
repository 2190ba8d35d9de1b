"""The whole job on a real Ray and a real MLflow: run once for the session, then looked at from every side."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from moved_storage import UNTOUCHED
from postgres import open_postgres


@pytest.fixture(scope="session")
def ddpm():
    """The command as a user calls it: a function of its words, giving back what it printed."""

    def call(*words, check=True):
        command = [sys.executable, "-m", "workflows.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def whole(ddpm, cluster, storage):
    """`ddpm run smoke` on the session's cluster, by its Jobs API; its result."""
    done = ddpm("run", "smoke", "--storage", str(storage), "--address", cluster.dashboard, "--json")
    shutil.copytree(storage, storage.parent / UNTOUCHED, symlinks=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def client(whole, storage):
    """MLflow's, of where that run is tracked: MLflow's own global state would leak into other tests' processes."""
    assert whole["champion"]
    uri = f"sqlite:///{storage}/mlflow.db"
    return MlflowClient(uri, uri)


@pytest.fixture(scope="session")
def model_files(client):
    """The folder of what was logged as the champion."""
    version = client.get_model_version_by_alias("smoke", "champion")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    return Path(logged.artifact_location.removeprefix("file://"))


@pytest.fixture(scope="session")
def postgres():
    """A real server, of which `make_database(NAME)` gives the URI of a new database."""
    with open_postgres() as server:
        yield server
