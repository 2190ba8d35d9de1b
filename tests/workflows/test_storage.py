import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from workflows import storage
from workflows.storage import Environment, JobFailed, check_storage, file_lock, locked

HOLD = """
import sys
from workflows.storage import Environment, locked
with locked(Environment(storage=sys.argv[1]), "train-x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused_with_its_pid(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_WAIT_S", 0.1)

    with (
        pytest.raises(JobFailed, match=f"train-x is being worked on by process {holder.pid}"),
        locked(Environment(storage=str(tmp_path)), "train-x"),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.kill()

    with locked(Environment(storage=str(tmp_path)), "train-x"):
        assert (tmp_path / "locks" / "train-x.lock").read_text() == str(os.getpid())


def test_a_storage_that_is_a_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ValueError, match="storage must be a folder that can be written"):
        check_storage(Environment(storage=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_checking_a_storage_leaves_nothing_in_it(tmp_path):
    check_storage(Environment(storage=str(tmp_path / "new")))

    assert list((tmp_path / "new").iterdir()) == []


def test_tracking_defaults_to_a_database_in_a_local_storage(tmp_path):
    environment = Environment(storage=str(tmp_path))

    assert environment.mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert environment.artifact_root == f"{tmp_path}/mlflow-artifacts"


def test_a_tracking_server_named_by_flag_or_environment_keeps_its_own_artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    by_environment, by_flag = (Environment(storage=str(tmp_path), tracking_uri=uri) for uri in ("", "http://flag"))

    assert by_environment.mlflow_uri == "http://from-environment"
    assert by_flag.mlflow_uri == "http://flag"
    assert by_flag.artifact_root is None


def test_a_lock_whose_file_is_removed_each_time_still_lets_in_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_S", 0.001)
    inside, seen = [], []

    def work(number):
        with file_lock(tmp_path / "x.lock", remove=True):
            inside.append(number)
            seen.append(len(inside))
            time.sleep(0.001)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))

    assert seen == [1] * 40
    assert list(tmp_path.iterdir()) == []
