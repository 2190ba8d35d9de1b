"""The MLflow server that infra/ starts on one machine: PostgreSQL, S3 behind its proxy, and accounts."""

import json
import shutil
import subprocess

import psutil
import pytest
from smoke_training import DDPM
from tracking_service import ACCOUNT, BUCKET, PASSWORD, Store, TrackingService, refusal

from workflows.storage import Environment
from workflows.tracking import Tracker, check_server

pytestmark = pytest.mark.skipif(
    not shutil.which("pg_config") or not shutil.which("postgres", path=subprocess.getoutput("pg_config --bindir")),
    reason="there is no PostgreSQL on this machine",
)


@pytest.fixture(scope="module")
def store():
    store = Store()
    yield store
    store.stop()


@pytest.fixture(scope="module")
def service(store):
    service = TrackingService(store)
    yield service
    service.remove()


@pytest.fixture
def where(service, monkeypatch):
    """For somebody with an account."""
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    return Environment(storage="/nowhere", tracking_uri=service.uri)


def test_what_an_account_logs_is_found_again_and_its_files_come_through_the_server_into_the_bucket(
    store, where, tmp_path
):
    (tmp_path / "file").write_text("content")
    tracker = Tracker(where)
    run_id = tracker.start("digits", "train", "key", {}, {})
    with tracker.ending(run_id):
        tracker.log_metrics(run_id, {"loss": 0.5}, step=3)
        tracker.log_file(run_id, tmp_path / "file")
    found = tracker.run(run_id)
    pulled = tracker.download(run_id, "file", tmp_path)
    (key,) = store.keys("mlflow/")

    assert found.status == "FINISHED"
    assert found.metrics == {"loss": 0.5}
    assert pulled.read_text() == "content"
    assert run_id in key
    assert store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"content"


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_and_none_are_refused_at_once_by_the_names_of_what_to_set(password, where, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD must be those of an"):
        check_server(where)


def test_a_password_in_the_uri_is_refused(service):
    uri = service.uri.replace("http://", f"http://admin:{PASSWORD}@")

    with pytest.raises(ValueError, match="must hold no password") as refused:
        check_server(Environment(storage="/nowhere", tracking_uri=uri))
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "MLFLOW_AUTH_ADMIN_PASSWORD must be a password of at least 12 characters: there is no default"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}, "MLFLOW_ARTIFACTS_DESTINATION must be s3://BUCKET/FOLDER, got ''"),
    ],
)
def test_it_does_not_start_without_a_password_or_a_bucket(environment, said):
    code, error = refusal(**environment)

    assert code == 2
    assert error == f"mlflow_server: error: {said}\n"


def test_two_servers_do_not_share_a_folder(service):
    second = subprocess.run(service.command, env=service.environment, capture_output=True, text=True, check=False)

    assert second.returncode == 2
    assert "one already uses" in second.stderr


@pytest.mark.chaos
def test_killed_and_started_again_it_has_all_that_was_tracked_and_leaves_nothing_running_when_it_is_stopped(store):
    service = TrackingService(store)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ACCOUNT.items():
            environment.setenv(name, value)
        tracker = Tracker(Environment(storage="/nowhere", tracking_uri=service.uri))
        run_id = tracker.start("digits", "train", "key", {}, {})
        service.process.kill()
        service.process.wait()
        for process in psutil.process_iter(["cmdline"]):  # MLflow itself, which has the port
            if f"--port {service.uri.rpartition(':')[2]}" in " ".join(process.info["cmdline"] or ()):
                process.kill()
        service.start()

        assert tracker.run(run_id).status == "RUNNING"
    service.stop()

    assert not [process for process in psutil.process_iter(["cmdline"])
                if str(service.folder) in " ".join(process.info["cmdline"] or ())]  # fmt: skip
    service.remove()


@pytest.mark.chaos
@pytest.mark.ray
def test_the_whole_run_goes_through_it(store, service, monkeypatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    words = ["run", "digits", "--num=100", "--storage", f"s3://{BUCKET}/runs", "--tracking-uri", service.uri, "--json"]
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    refused = subprocess.run([*DDPM, *words], capture_output=True, text=True, check=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    done = subprocess.run([*DDPM, *words], capture_output=True, text=True, check=False)
    result = json.loads((done.stdout.splitlines() or [done.stderr])[-1])
    logged = store.keys("mlflow/")

    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "which refuses what it was given" in refused.stderr
    assert result["model"] == "models:/digits/1"
    assert result["champion"]
    assert [key for key in logged if key.endswith("model.safetensors")]
    assert [key for key in logged if key.endswith("grid.png")]
