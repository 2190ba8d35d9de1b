import os

import pytest

from workflows.auth import guard_local_ray

guard_local_ray("")  # before any test imports Ray
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def cluster():
    """The one Ray of the session: real, on this machine, reached as a cluster by its address."""
    from workflows.local_ray import start_local_ray

    return start_local_ray()
