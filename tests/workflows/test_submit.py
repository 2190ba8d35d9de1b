"""Commands as jobs of a real Ray, which takes them with a token only."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faulty_store import open_faulty_store
from link import link_to

from workflows.cluster.client import open_client
from workflows.cluster.job_log import result_in
from workflows.cluster.jobs import attach_or_submit, follow, stop
from workflows.storage import JobFailed
from workflows.submit import list_jobs, request_of

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # of Ray's own client
DDPM = [sys.executable, "-m", "workflows.cli"]


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
