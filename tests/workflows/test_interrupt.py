"""SIGINT and SIGTERM end a command within seconds, with one line and nothing left behind, and the next one goes on."""

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient
from smoke_training import DDPM, newest_step, train_command
from waiting import wait_for

pytestmark = pytest.mark.ray

LINE = "ddpm: error: interrupted; the same command goes on from here"
SOON_S = 20
"""on a machine that is free it takes one or two, and what holds it up is not waited for after five"""
GONE_S = 30
"""after which Ray's workers, too, have noticed that their Ray was killed"""
STEPS = 100_000
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


def start(command):
    """A shell gives what it runs in the background SIGINT ignored, and so it would come down to here."""
    return subprocess.Popen(["env", "--default-signal=INT", *command], stderr=subprocess.PIPE, text=True)


def interrupt(process, number):
    """What it said, after a signal has ended it as one should."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    began = time.monotonic()
    _, said = process.communicate(timeout=120)
    took = time.monotonic() - began
    psutil.wait_procs(family, timeout=GONE_S)
    left = [each for each in family if lives(each)]

    assert process.returncode == 130, said
    assert took < SOON_S, said
    assert [line for line in said.splitlines() if "interrupted" in line] == [LINE]
    assert "Traceback" not in said
    assert left == []
    return said


def lives(process):
    """Whether it is there, and not only a number that nobody has asked for yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def statuses(storage, stage):
    """Of the runs of a stage in MLflow, oldest first."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke")
    where = f"tags.`ddpm.stage` = '{stage}'"
    return [run.info.status for run in client.search_runs([experiment.experiment_id], where, order_by=["start_time"])]


def catches(process, number):
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1


@BOTH
def test_a_command_that_is_still_starting_ends_as_any_other(number):
    process = start([*DDPM, "config", "smoke"])
    wait_for(lambda: catches(process, signal.SIGTERM), process)

    interrupt(process, number)


def test_a_training_that_is_interrupted_is_killed_in_mlflow(whole, tmp_path):
    process = start(train_command(whole["data"], tmp_path, STEPS, "--checkpoint-every=10", "--cpus-per-worker=0.5"))
    wait_for(lambda: newest_step(tmp_path), process)
    interrupt(process, signal.SIGINT)

    assert statuses(tmp_path, "train") == ["KILLED"]


@pytest.mark.chaos
def test_a_training_that_is_interrupted_is_killed_in_mlflow_and_goes_on_the_next_time(whole, tmp_path):
    command = train_command(whole["data"], tmp_path, STEPS, "--checkpoint-every=10", "--cpus-per-worker=0.5")
    first = start(command)
    wait_for(lambda: newest_step(tmp_path), first)
    interrupt(first, signal.SIGINT)
    left = newest_step(tmp_path)
    second = start(command)
    wait_for(lambda: newest_step(tmp_path) > left, second)
    said = interrupt(second, signal.SIGTERM)

    assert f"going on from the checkpoint at step {left} of {STEPS}" in said
    assert statuses(tmp_path, "train") == ["KILLED", "KILLED"]


def test_an_interrupted_shard_is_killed_in_mlflow(tmp_path):
    process = start([*DDPM, "shard", "smoke", "--samples-per-shard=1", "--storage", str(tmp_path)])
    wait_for(lambda: list(tmp_path.glob("data/smoke/*.tar")), process)
    interrupt(process, signal.SIGTERM)

    assert statuses(tmp_path, "shard") == ["KILLED"]


@pytest.mark.chaos
def test_an_interrupted_run_takes_its_jobs_with_it(whole, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smoke").symlink_to(whole["data"])
    flags = [f"--train.steps={STEPS}", "--train.checkpoint-every=10"]
    process = start([*DDPM, "run", "smoke", *flags, "--storage", str(tmp_path)])
    wait_for(lambda: newest_step(tmp_path), process)
    interrupt(process, signal.SIGINT)

    assert statuses(tmp_path, "train") == ["KILLED"]


@pytest.mark.chaos
def test_on_a_cluster_the_job_of_an_interrupted_run_lives_on(whole, cluster, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smoke").symlink_to(whole["data"])
    flags = [f"--train.steps={STEPS}", "--address", cluster.dashboard, "--train.checkpoint-every=10"]
    process = start([*DDPM, "run", "smoke", *flags, "--storage", str(tmp_path)])
    wait_for(lambda: newest_step(tmp_path), process)
    interrupt(process, signal.SIGINT)
    left = newest_step(tmp_path)
    jobs = JobSubmissionClient(cluster.dashboard)
    (job,) = [job for job in jobs.list_jobs() if not job.status.is_terminal()]
    wait_for(lambda: newest_step(tmp_path) > left)
    jobs.stop_job(job.submission_id)
    wait_for(lambda: jobs.get_job_status(job.submission_id).is_terminal())

    assert job.submission_id.startswith("train-")
    assert statuses(tmp_path, "train") == ["KILLED"]
