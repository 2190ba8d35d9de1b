"""The whole of `ddpm retrain` on a real Ray: promoted, refused, killed and run again, two at once on a cluster."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from growing_source import add_digits
from mlflow import MlflowClient
from moved_storage import moved
from safetensors.torch import load_file
from smoke_training import differing, newest_step
from waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

DDPM = [sys.executable, "-m", "workflows.cli"]
STEPS = 40
LIMIT_S = 900


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A storage with a champion that has learnt next to nothing of 600 digits, which are 900 by now."""
    place = tmp_path_factory.mktemp("grown")
    add_digits(place / "source", range(600))
    settings = ["--train.steps", "1", "--source", str(place / "source"), "--name", "grown"]
    subprocess.run([*DDPM, "run", "smoke", *settings, "--storage", str(place / "runs")], check=True, timeout=LIMIT_S)
    add_digits(place / "source", range(600, 900))
    return place / "runs"


@pytest.fixture
def copy(grown, tmp_path):
    return moved_to(grown, tmp_path / "runs")


def moved_to(storage, to):
    moved(storage, to)
    return to


def command(storage, *words):
    where = ["--storage", str(storage), "--json"]
    return [*DDPM, "retrain", "--name", "grown", "--train.steps", str(STEPS), *where, *words]


def ended(process):
    said, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    return json.loads(said.splitlines()[-1])


def started(storage, *words):
    return subprocess.Popen(
        command(storage, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(storage).parent
    )


def client_of(storage):
    uri = f"sqlite:///{storage}/mlflow.db"
    return MlflowClient(uri, uri)


def trained(storage, steps=STEPS):
    """What the last training of so many steps made."""
    files = Path(storage).glob(f"train/*/attempt-*/step-{steps:08d}/ema-0.safetensors")
    return load_file(max(files, key=lambda file: file.stat().st_mtime))


@pytest.fixture(scope="module")
def unbroken(grown, tmp_path_factory):
    """A retraining that nothing happens to: its storage and its result."""
    storage = moved_to(grown, tmp_path_factory.mktemp("unbroken") / "runs")
    return storage, ended(started(storage))


def test_a_better_candidate_that_began_with_the_champions_weights_is_promoted(unbroken):
    storage, result = unbroken
    client = client_of(storage)
    champion, run = client.get_model_version_by_alias("grown", "champion"), client.get_run(result["run"])
    begun = client.get_run(champion.run_id).data.tags
    (start,) = Path(storage).glob("train/*/start.safetensors")

    assert (result["outcome"], result["candidate"]) == ("promoted", "models:/grown/2"), result["reasons"]
    assert int(champion.version) == 2
    assert begun["ddpm.start_model"] == "models:/grown/1"
    assert begun["ddpm.start_weights_sha256"] == client.get_model_version("grown", "1").tags["ddpm.weights_sha256"]
    assert differing(load_file(start), trained(storage, steps=1)) == []
    assert champion.tags["ddpm.dataset_digest"] == run.data.tags["ddpm.dataset_digest"]
    assert run.data.metrics["candidate/frechet_thumbnails"] < run.data.metrics["champion/frechet_thumbnails"]
    assert Path(result["report"]).exists()
    assert json.loads(champion.tags["ddpm.reasons"]) == result["reasons"]


def test_one_that_is_no_better_is_refused_and_the_same_again_is_skipped(unbroken, tmp_path):
    storage = moved_to(unbroken[0], tmp_path / "runs")
    (source,) = json.loads((storage / "data/grown/dataset.json").read_text())["config"]["source"]
    more = shutil.copytree(source, tmp_path / "source")
    add_digits(more, range(900, 1000))
    client, before = client_of(storage), trained(storage)
    same = ("--train.lr", "1e-30", "--source", source, str(more))  # it stays what it begins with: a tie
    refused, skipped = ended(started(storage, *same)), ended(started(storage, *same))
    candidate = client.get_model_version("grown", "3")

    assert (refused["outcome"], refused["candidate"]) == ("refused", "models:/grown/3")
    assert "not better than the champion's" in refused["reasons"][0]
    assert json.loads(candidate.tags["ddpm.reasons"]) == refused["reasons"]
    assert Path(refused["report"]).exists()
    assert differing(trained(storage), before) == []
    assert int(client.get_model_version_by_alias("grown", "champion").version) == 2
    assert skipped["outcome"] == "skipped"
    assert skipped["reasons"] == [f"decided already, by run {refused['run']}: refused"]


def test_killed_in_the_middle_and_run_again_it_comes_to_the_same(copy, unbroken):
    process = started(copy)
    wait_for(lambda: newest_step(copy) >= 5, process, LIMIT_S)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    again = ended(started(copy))
    client = client_of(copy)
    runs = client.search_runs([client.get_experiment_by_name("grown").experiment_id], "tags.`ddpm.stage` = 'retrain'")

    assert {**again, "run": "", "report": ""} == {**unbroken[1], "run": "", "report": ""}
    assert differing(trained(copy), trained(unbroken[0])) == []
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    assert {int(made.version) for made in client.search_model_versions("name = 'grown'")} == {1, 2}


def test_of_two_on_a_cluster_the_second_says_so_and_the_first_works(cluster, copy, unbroken):
    first = started(copy, "--address", cluster.dashboard)
    wait_for(lambda: (copy / "locks/retrain-grown.lock").exists(), first, LIMIT_S)
    second = ended(started(copy, "--address", cluster.dashboard))
    done = ended(first)

    assert second["outcome"] == "busy"
    assert "job retrain-grown-a1 at" in second["reasons"][0]
    assert (done["outcome"], done["reasons"]) == ("promoted", unbroken[1]["reasons"])
