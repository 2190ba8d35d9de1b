"""The whole job on a real Ray and a real MLflow: run once for the session, then looked at from every side."""

import json
import subprocess
import sys

import mlflow
import pytest


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


@pytest.fixture(scope="module")
def tracking_uri(whole, storage):
    """Where that run is tracked; MLflow in this process looks there, too, wherever other tests made it look."""
    assert whole["champion"]
    uri = f"sqlite:///{storage}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return uri


@pytest.fixture(scope="session")
def whole(ddpm, cluster, storage):
    """`ddpm run smoke` on the session's cluster, by its Jobs API; its result."""
    done = ddpm("run", "smoke", "--storage", str(storage), "--address", cluster.dashboard, "--json")
    return json.loads(done.stdout.splitlines()[-1])
