import os

import pytest

from workflows.auth import guard_local_ray

guard_local_ray("")  # before any test imports Ray
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(autouse=True)
def no_mlflow_of_another_test(monkeypatch):
    """MLflow writes the URIs that it is given into the environment, for processes that we start to find."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # so that it is taken away again in the end, whoever sets it
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cluster():
    """The one Ray of the session: real, on this machine, reached as a cluster by its address."""
    from workflows.local_ray import start_local_ray

    return start_local_ray()
