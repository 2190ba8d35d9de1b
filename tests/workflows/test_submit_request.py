"""What a cluster is asked for a command, and what the job is called."""

import json
import sys
from pathlib import Path

import pytest
import ray
from ray_head import job, open_head

from diffusion.files import Folder
from workflows.cli import understood
from workflows.cluster.client import check_versions, open_client
from workflows.cluster.credentials import CREDENTIALS_FILE
from workflows.cluster.jobs import attach_or_submit, id_of, remote_request
from workflows.submit import key_of, request_of, with_uris

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # of Ray's own client
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_same_words_are_the_same_job():
    assert key_of(["run", "digits"]) == key_of(("run", "digits"))
    assert key_of(["run", "digits"]) != key_of(["run", "digits", "--num=3"])
    assert key_of(["run", "digits"]).startswith("run-")


def test_in_another_folder_or_with_another_config_the_same_words_are_another_job(tmp_path):
    config = tmp_path / "mine.yaml"
    words, keys = ["run", "--config", str(config)], []
    for text in ("name: a\n", "name: b\n"):
        config.write_text(text)
        keys += [key_of(words, "/here"), key_of(words, "/there")]
        assert keys[-1] == key_of(words, "/there")

    assert len(set(keys)) == 4


def test_the_same_stage_of_a_run_in_another_storage_is_another_job():
    live = job(
        "shard-x-a1", "RUNNING", entrypoint="cd '/my work' && exec python -m workflows.cli shard --storage /a/runs"
    )
    with open_head() as head:
        head.answers["GET /api/jobs/"] = (200, [live])
        client = open_client(head.address)
        found = [
            id_of(client, remote_request("shard-x", ("shard", "--storage", place))) for place in ("/a/runs", "/b/runs")
        ]

    assert found == [("shard-x-a1", True), ("shard-x-a2", False)]


def test_elsewhere_a_config_that_was_changed_is_another_job(tmp_path):
    config, keys = tmp_path / "mine.yaml", []
    with open_head() as head:
        client = open_client(head.address)
        for text in ("name: a\n", "name: b\n", "name: a\n"):
            config.write_text(text)
            words = ["run", "--config", str(config), "--storage", str(tmp_path / "storage")]
            keys.append(request_of(client, words).key)

    assert keys[0] == keys[2]
    assert keys[0] != keys[1]


def test_a_request_sends_our_two_packages_and_shows_no_more_of_credentials_than_their_place():
    request = remote_request("run-1", ("run", "a b"), "/opt/python", "/home/some one", "/run/secrets/store")

    assert request.entrypoint == "cd '/home/some one' && exec /opt/python -m workflows.cli run 'a b'"
    assert [path.rsplit("/", 1)[1] for path in request.runtime_env["py_modules"]] == ["diffusion", "workflows"]
    assert request.runtime_env["env_vars"][CREDENTIALS_FILE] == "/run/secrets/store"
    assert "working_dir" not in request.runtime_env


def test_a_job_of_a_job_is_sent_as_that_was(monkeypatch):
    outer = remote_request("run-1", ("run",), "/opt/python", "", "/run/secrets/store")
    for name, value in outer.runtime_env["env_vars"].items():
        monkeypatch.setenv(name, value)
    inner = remote_request("train-1", ("train",))

    assert inner.runtime_env == outer.runtime_env
    assert inner.python == "/opt/python"


@pytest.mark.parametrize("python", [f"{OURS}.0", f"{OURS}.99"])
def test_another_patch_of_python_will_do(python):
    check_versions("http://head:8265", ray.__version__, python)


@pytest.mark.parametrize(("ray_version", "python"), [("2.59.0", f"{OURS}.1"), (ray.__version__, "3.9.1")])
def test_another_ray_or_python_is_refused_with_both_versions(ray_version, python):
    with pytest.raises(ValueError, match=r"must have Ray .* on Python .* as this machine has, got Ray") as refused:
        check_versions("http://head:8265", ray_version, python)
    assert ray.__version__ in str(refused.value)
    assert f"got Ray {ray_version} on Python {python}" in str(refused.value)


@pytest.mark.parametrize("words", [["run"], ["run", "--storage", "./runs"], ["run", "--storage=runs"]])
def test_elsewhere_a_storage_of_this_folder_is_refused(words):
    with pytest.raises(ValueError, match="storage must be one that the cluster reaches"):
        with_uris(words)


@pytest.mark.parametrize("name", ["my config.yaml", "config", "run", "storage"])
@pytest.mark.parametrize("is_joined", [True, False])
def test_elsewhere_a_config_of_ours_comes_out_of_the_storage_and_no_other_word_changes(
    tmp_path, monkeypatch, is_joined, name
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("name: mine\n")
    storage = tmp_path / "storage"
    others = ["--storage", str(storage), "--source", f"s3://bucket/old-{name}-pictures"]
    command, files = with_uris(["run", *([f"--config={name}"] if is_joined else ["--config", name]), *others])
    ((uri, text),) = files.items()

    assert text == b"name: mine\n"
    assert uri.startswith(f"{Folder(storage).uri}/configs/submitted-")
    assert command == ("run", *([f"--config={uri}"] if is_joined else ["--config", uri]), *others)


def test_a_dry_run_writes_and_sends_nothing_and_says_what_the_job_would_be_called(tmp_path, capsys):
    config, storage = tmp_path / "mine.yaml", tmp_path / "storage"
    config.write_text("name: mine\n")
    with open_head() as head:
        where = ["--address", head.address, "--json"]
        command, args = understood(
            ["submit", "--dry-run", *where, "--", "run", "--config", str(config), "--storage", str(storage)]
        )
        first = command.act(args)
        key = first["submission_id"].removesuffix("-a1")
        head.answers["GET /api/jobs/"] = (
            200,
            [job(f"{key}-a1", "FAILED"), job(f"{key}-a2", "RUNNING", entrypoint=first["entrypoint"])],
        )
        attached = command.act(args)

    assert (first["submission_id"], first["attached"]) == (f"{key}-a1", False)
    assert (attached["submission_id"], attached["attached"]) == (f"{key}-a2", True)
    assert [file in first["entrypoint"] for file in first["files"]] == [True]
    assert json.loads(capsys.readouterr().err.partition("}\n{")[0] + "}") == first
    assert not storage.exists()
    assert not [asked for asked in head.asked if not asked.startswith("GET")]


def test_what_a_job_reads_is_there_when_it_is_sent(tmp_path):
    request = remote_request("run-1", ("run",), files={f"{tmp_path}/configs/a.yaml": b"name: mine\n"})
    with open_head() as head:
        head.answers["POST /api/jobs/"] = (200, {"job_id": "run-1-a1", "submission_id": "run-1-a1"})
        sent = attach_or_submit(open_client(head.address), request)

    assert sent == ("run-1-a1", False)
    assert (tmp_path / "configs/a.yaml").read_bytes() == b"name: mine\n"
