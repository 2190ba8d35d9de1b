"""Commands as jobs of a real Ray, which takes them with a token only."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from faulty_store import open_faulty_store
from link import link_to
from ray_head import job, open_head

from diffusion.files import Folder
from workflows.cli import understood
from workflows.cluster.client import check_versions, open_client
from workflows.cluster.credentials import CREDENTIALS_FILE
from workflows.cluster.job_log import result_in
from workflows.cluster.jobs import attach_or_submit, follow, remote_request, stop
from workflows.storage import JobFailed
from workflows.submit import key_of, list_jobs, request_of, with_uris

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # of Ray's own client
DDPM = [sys.executable, "-m", "workflows.cli"]
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
        head.answers["GET /api/jobs/"] = (200, [job(f"{key}-a1", "FAILED"), job(f"{key}-a2", "RUNNING")])
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit"], "submit must be given a command after --"),
        (["submit", "--", "retrian"], "command must be one of .*, got 'retrian'"),
        (["submit", "--", "run", "--num", "0"], "num must be at least 1, got 0"),
        (["submit", "--address", "http://127.0.0.1:1", "--", "run"], "no Ray cluster answers at address http://127.0.0.1:1"),
        (["jobs", "list", "--address", "http://127.0.0.1:1"], "no Ray cluster answers at address http://127.0.0.1:1"),
        (["jobs", "lsit"], "command must be one of .*got 'jobs lsit'"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(ddpm, words, message):
    done = ddpm(*words, check=False)

    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "--", "run"], "command must be one that a job can do, got submit"),
        (["run", "--address", "auto"], "address must be given before --"),
        (["run", "--tracking-uri", "http://me:pw@host"], "must not have a password in it"),
    ],
)
def test_what_no_job_can_do_is_refused(cluster, words, message):
    with pytest.raises(ValueError, match=message):
        request_of(open_client(cluster.dashboard), words)


@pytest.mark.ray
def test_a_head_of_this_machine_is_known_wherever_its_session_is_and_works_in_our_folder(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\n")
    request = request_of(open_client(cluster.dashboard), ["run", "--config", "mine.yaml"])

    assert request.folder == str(tmp_path)
    assert request.argv == ("run", "--config", "mine.yaml")
    assert request.files == {}


@pytest.mark.ray
def test_a_wrong_token_is_said(ddpm, cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    done = ddpm("jobs", "list", "--address", cluster.dashboard, check=False)

    assert done.returncode == 2
    assert "wants its token, got none or another" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.ray
def test_a_followed_command_says_its_result_and_is_in_the_list(ddpm, cluster, tmp_path):
    where = ["--address", cluster.dashboard]
    done = ddpm("submit", *where, "--follow", "--json", "--", "config", "smoke", "--storage", str(tmp_path))
    sent = json.loads(done.stdout)
    (listed,) = [
        job for job in json.loads(ddpm("jobs", "list", *where, "--json").stdout)["jobs"] if job["job"] == sent["job"]
    ]
    log = ddpm("jobs", "logs", sent["job"], *where).stdout

    assert sent["status"] == listed["status"] == "SUCCEEDED"
    assert "name: smoke" in done.stderr
    assert "name: smoke" in log
    assert listed["command"] == f"config smoke --storage {tmp_path}"
    assert json.loads(ddpm("jobs", "status", sent["job"], *where, "--json").stdout) == listed


@pytest.mark.ray
def test_a_command_that_fails_there_fails_here_with_its_last_word(ddpm, cluster, tmp_path):
    done = ddpm(
        "submit", "--address", cluster.dashboard, "--follow", "--", "verify", "nothing", "--storage", str(tmp_path),
        check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "nothing" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("ddpm: error: ")


@pytest.mark.ray
def test_a_driver_beside_the_jobs_is_none_of_them(cluster):
    driver = f"import ray; ray.init('{cluster.address}')  # as of workflows.cli"
    subprocess.run([sys.executable, "-c", driver], check=True)
    jobs = open_client(cluster.dashboard).list_jobs()

    assert not all(job.submission_id for job in jobs)
    assert all(job["job"] for job in list_jobs(cluster.dashboard))


@pytest.mark.ray
def test_an_unknown_job_is_answered_with_those_that_are_known(ddpm, cluster):
    done = ddpm("jobs", "logs", "run-1", "--address", cluster.dashboard, check=False)

    assert done.returncode == 2
    assert "there is no job run-1; the newest are: " in done.stderr


@pytest.mark.ray
def test_the_same_submission_attaches_while_it_runs_and_is_another_attempt_when_it_is_over(cluster, tmp_path):
    client = open_client(cluster.dashboard)
    request = request_of(client, ["config", "digits", "--storage", str(tmp_path)])
    first, was_there = attach_or_submit(client, request)
    second, is_there = attach_or_submit(client, request)
    stop(client, first)
    third, _ = attach_or_submit(client, request)
    stop(client, third)

    assert (first, was_there) == (f"{request.key}-a1", False)
    assert (second, is_there) == (first, True)
    assert third == f"{request.key}-a2"


@pytest.mark.ray
def test_many_at_once_submit_one(cluster, tmp_path):
    request = request_of(open_client(cluster.dashboard), ["config", "smoke", "--name=x", "--storage", str(tmp_path)])
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(attach_or_submit(open_client(cluster.dashboard), request)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop(open_client(cluster.dashboard), found[0][0])

    assert {job for job, _ in found} == {f"{request.key}-a1"}
    assert sorted(was_there for _, was_there in found) == [False, True, True, True]


@pytest.mark.ray
def test_a_job_has_credentials_that_nobody_sees(cluster, tmp_path):
    with open_faulty_store() as store:
        store.client.create_bucket(Bucket="secret")
        secrets = tmp_path / "store"
        secrets.write_text("".join(f"{name}={value}\n" for name, value in store.environment.items()))
        client = open_client(cluster.dashboard)
        command = ["verify", "s3://secret/set", "--storage", str(tmp_path)]
        job_id, _ = attach_or_submit(client, request_of(client, command, credentials=str(secrets)))
        with pytest.raises(JobFailed) as failed:
            follow(client, job_id)
        calls = [call.name for call in store.buckets["secret"].calls]

    assert any("set/dataset.json" in name for name in calls), failed.value
    assert store.environment["AWS_SECRET_ACCESS_KEY"] not in json.dumps(
        [job.runtime_env for job in client.list_jobs() if job.submission_id == job_id]
    )


@pytest.mark.ray
def test_a_link_that_is_lost_for_a_while_costs_nothing(cluster, tmp_path):
    with link_to(cluster.dashboard) as link:
        command = ["submit", "--address", f"http://127.0.0.1:{link.port}", "--follow", "--", "config", "smoke"]
        command += ["--num=7", "--storage", str(tmp_path)]
        with subprocess.Popen([*DDPM, *command], stderr=subprocess.PIPE, text=True) as process:
            wait_for_line(process, "Ray job")
            link.cut()
            time.sleep(2)
            link.mend()
            rest = process.stderr.read()

    assert process.returncode == 0, rest
    assert "name: smoke" in rest


def wait_for_line(process, words):
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


def test_a_result_is_what_comes_after_all_progress():
    log = 'Running entrypoint for job\nddpm: Ray job\n@progress ["x"]\nmodel  models:/x/1\nlook   ddpm ui\n'

    assert result_in(log) == "model  models:/x/1\nlook   ddpm ui"
    assert result_in("") == ""
