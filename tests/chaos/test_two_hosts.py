"""`ddpm train` over two hosts: where its workers are changes nothing, and a host that is lost costs time only."""

import json
import re
import subprocess
import time

import psutil
import pytest
import safetensors.torch
import torch
from smoke_training import DDPM, differing
from waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.chaos

STEPS = 160
TRAIN = ["--steps", str(STEPS), "--checkpoint-every", "20", "--keep-checkpoints", "1", "--preview-every", "0"]
DATA = "s3://data/smoke"


@pytest.fixture(scope="module")
def store(bridge_store):
    return bridge_store


@pytest.fixture
def ray(hosts_with_ray):
    """Ray on both hosts, whole again after whatever a test does to it."""
    yield hosts_with_ray
    hosts_with_ray.mend()


class Run:
    """A training with a storage of its own, in a bucket of this name."""

    def __init__(self, store, name, folder):
        self.client, self.bucket, self.folder = store.client, name, folder
        self.client.create_bucket(Bucket=name)

    def command(self, *words):
        where = ["--storage", f"s3://{self.bucket}/runs", "--tracking-uri", f"sqlite:///{self.folder}/{self.bucket}.db"]
        return [*DDPM, "train", "smoke", "--data", DATA, *TRAIN, *where, *words]

    def keys(self, pattern):
        """Its files of this kind."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix="runs/train/").get("Contents", [])
        return [key["Key"] for key in found if re.search(pattern, key["Key"])]

    def read(self, pattern):
        """The one file of this kind."""
        (key,) = self.keys(pattern)
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def weights(self):
        return safetensors.torch.load(self.read(rf"step-{STEPS:08d}/ema-0.safetensors"))


@pytest.fixture(scope="module")
def data(store, tmp_path_factory):
    store.client.create_bucket(Bucket="data")
    tracking = f"sqlite:///{tmp_path_factory.mktemp('data')}/mlflow.db"
    where = ["--out", DATA, "--storage", "s3://data/runs", "--tracking-uri", tracking]
    subprocess.run([*DDPM, "shard", "smoke", *where], check=True)


@pytest.fixture(scope="module")
def unbroken(data, store, tmp_path_factory):
    """The weights of two workers of this machine, without a network between them."""
    run = Run(store, "unbroken", tmp_path_factory.mktemp("unbroken"))
    done = subprocess.run(run.command(), check=True, stderr=subprocess.PIPE, text=True)
    return run.weights(), last_loss(done.stderr)


def finish(process):
    """Its exit code, and what it said."""
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def trainers(host):
    """The host's processes that are training."""
    return [pid for pid in host.pids() if "RayTrainWorker" in title_of(pid)]


def title_of(pid):
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def last_loss(said):
    return float(re.search(rf"step {STEPS}/{STEPS} loss ([0-9.]+)", said)[1])


def distance(weights, others):
    """How far apart two networks are, as a part of their length."""
    a, b = (torch.cat([each[name].flatten() for name in sorted(each)]) for each in (weights, others))
    print(f"distance {((a - b).norm() / b.norm()).item():.2e}")
    return ((a - b).norm() / b.norm()).item()


def in_the_middle(run, hosts, *words):
    """The driver of a training that is under way on both hosts, and who trains on each."""
    process = hosts.start_driver(run.command(*words))
    wait_for(lambda: run.keys(r"step-\d+/COMMIT"), process)
    return process, [trainers(host) for host in (hosts.head, hosts.second)]


def test_workers_on_two_hosts_make_the_weights_of_workers_on_one(ray, store, unbroken, tmp_path):
    run = Run(store, "spread", tmp_path)
    process, pids = in_the_middle(run, ray)
    first = json.loads(run.read("attempt-1/attempt.json"))["pid"]
    code, said = finish(process)
    weights = run.weights()

    assert code == 0, said
    assert [len(found) for found in pids] == [1, 1]
    assert first in (pids[0] + pids[1])
    assert differing(weights, unbroken[0]) == []


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_an_elastic_training_goes_on_without_a_host_that_is_lost(how, ray, store, unbroken, tmp_path):
    run = Run(store, f"elastic-{how}", tmp_path)
    process, pids = in_the_middle(run, ray, "--min-workers", "1")
    ray.lose(ray.second, how)
    began = time.monotonic()
    wait_for(lambda: run.keys("attempt-2/attempt.json"), process)
    print(f"{how}: {time.monotonic() - began:.0f} s until the next attempt")
    code, said = finish(process)

    assert code == 0, said
    assert [len(found) for found in pids] == [1, 1]
    assert last_loss(said) == pytest.approx(unbroken[1], abs=1e-3)
    assert distance(run.weights(), unbroken[0]) < 1e-2


def test_a_training_of_fixed_size_says_what_a_lost_host_leaves_and_goes_on_when_it_is_back(
    ray, store, unbroken, tmp_path
):
    run = Run(store, "fixed", tmp_path)
    process, _ = in_the_middle(run, ray)
    ray.lose(ray.second, "kill")
    began = time.monotonic()
    code, said = finish(process)
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s until it ended, saying {said.splitlines()[-1]}")
    ray.start_second()
    again = finish(ray.start_driver(run.command()))

    assert code == 1
    assert "Traceback" not in said
    assert re.fullmatch(r"ddpm: error: .*num_workers=2 .*the cluster has 1.*", said.splitlines()[-1])
    assert seconds < 120
    assert again[0] == 0, again[1]
    assert "going on from the checkpoint at step" in again[1]
    weights = run.weights()
    assert differing(weights, unbroken[0]) == []
