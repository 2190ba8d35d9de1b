"""`kill -9` of a worker and of the driver while samples are drawn: the same pictures, only lost ones drawn again."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from waiting import wait_for

from diffusion.data.shard_set import DATASET, open_shard_set
from diffusion.files import Folder

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

DDPM = [sys.executable, "-m", "workflows.cli"]
NUM = 2000
LIMIT_S = 900


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cluster):
    """A storage with digits' champion of few steps, and what 2,000 samples by one worker are."""
    storage = tmp_path_factory.mktemp("trained")
    where = ["--storage", str(storage)]
    run = [*DDPM, "run", "digits", "--train.steps=40", "--num=20", *where, "--address", cluster.dashboard]
    subprocess.run(run, check=True)
    one = finish(start(sample_command(storage, cluster, 1)))
    shutil.move(one["samples"], storage / "one")
    shutil.rmtree(storage / "features")
    return storage, open_shard_set(Folder(storage / "one")), storage / "samples" / Path(one["samples"]).name


def sample_command(storage, cluster, num_workers):
    flags = [f"--num={NUM}", "--seed=7", f"--num-workers={num_workers}", "--cpus-per-worker=0.5", "--json"]
    return [*DDPM, "sample", "--name=digits", "--storage", str(storage), "--address", cluster.address, *flags]


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a run says in the end."""
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def drawing():
    """The workers that draw just now."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if "ray::_numbered" in " ".join(process.info["cmdline"] or [])]


def parts_in(folder):
    return sorted(folder.glob("plan/shard-*.json"))


@pytest.fixture
def folder(trained):
    """Where the samples go; MLflow knows of a run that made them, but they are gone."""
    _, one, folder = trained
    yield folder
    assert len(parts_in(folder)) == len(one.tars)
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent.parent / "features")


def check_same(samples, one):
    found = open_shard_set(Folder(samples))

    assert found.digest == one.digest
    assert [tar.sha256 for tar in found.tars] == [tar.sha256 for tar in one.tars]


def test_three_workers_of_whom_one_is_killed_draw_what_one_draws(trained, folder, cluster):
    storage, one, _ = trained
    process = start(sample_command(storage, cluster, 3))
    wait_for(lambda: len(parts_in(folder)) >= 2, process)
    wait_for(drawing, process)[0].kill()
    done = finish(process)

    check_same(done["samples"], one)


def test_a_driver_that_is_killed_goes_on_with_what_is_missing(trained, folder, cluster):
    storage, one, _ = trained
    process = start(sample_command(storage, cluster, 2))
    wait_for(lambda: len(parts_in(folder)) >= 3, process)
    process.kill()
    process.communicate()
    time.sleep(3)  # Ray ends its tasks
    before = {part: part.stat().st_mtime_ns for part in parts_in(folder)}

    assert 3 <= len(before) < len(one.tars)
    assert not (folder / DATASET).exists()

    done = finish(start(sample_command(storage, cluster, 1)))
    check_same(done["samples"], one)
    assert {part: part.stat().st_mtime_ns for part in before} == before


def test_two_calls_at_once_draw_once(trained, folder, cluster):
    storage, one, _ = trained
    uri = f"sqlite:///{storage}/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("digits").experiment_id
    where = "tags.`ddpm.stage` = 'sample'"
    before = len(client.search_runs([experiment], where))
    first, second = (start(sample_command(storage, cluster, 1)) for _ in range(2))
    results = [finish(process) for process in (first, second)]

    assert results[0]["run"] == results[1]["run"]
    assert len(client.search_runs([experiment], where)) == before + 1
    check_same(results[0]["samples"], one)
