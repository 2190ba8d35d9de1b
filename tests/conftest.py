import os
import shutil
import subprocess

import pytest

from workflows.cluster.auth import guard_local_ray

guard_local_ray("")  # before any test imports Ray
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


MLFLOW_URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""MLflow writes the URIs that it is given into the environment, for processes that we start to find"""


@pytest.fixture(scope="module", autouse=True)
def no_mlflow_of_another_module():
    """Fixtures of modules come before those of tests, and may use MLflow, too."""
    for name in MLFLOW_URIS:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_mlflow_of_another_test(monkeypatch):
    """A test's own use of MLflow is forgotten when it ends."""
    for name in MLFLOW_URIS:
        monkeypatch.setenv(name, "")  # so that it is taken away again in the end, whoever sets it
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cluster():
    """The one Ray of the session: real, on this machine, reached as a cluster by its address."""
    from workflows.cluster.local import start_local_ray

    return start_local_ray()


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: where it is, and a function that gives it another size or number of files."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if not shutil.which("mount") or (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    def limit(option):
        subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)

    yield place, limit
    subprocess.run(["umount", str(place)], check=True)
