"""A cluster of two hosts that wants a token, worked from a third: commands as jobs, and a host lost in a retraining."""

import json
import os
import re
import subprocess
import sys

import pytest
from growing_source import add_digits
from mlflow import MlflowClient
from two_hosts import DASHBOARD_PORT, Host
from waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.chaos

ELASTIC = ["--train.num-workers=2", "--train.min-workers=1"]
SLOW = ["--train.steps=160", "--train.checkpoint-every=20", "--train.preview-every=0"]


@pytest.fixture(scope="module")
def third(hosts):
    """Where people are, with nothing of the cluster but its address and its token."""
    host = Host("ddpm-host-3", "10.77.0.3")
    host.remove()
    host.make()
    yield host
    host.remove()


class Site:
    """A source of pictures, a storage and a database that the cluster reaches."""

    def __init__(self, third, hosts, folder):
        self.third, self.source = third, folder / "pictures"
        self.address = f"http://{hosts.head.address}:{DASHBOARD_PORT}"
        self.tracking = f"sqlite:///{folder}/mlflow.db"

    def submit(self, *words, token=None):
        """A followed submission from the third host."""
        where = ["--storage", "s3://cluster/runs", "--tracking-uri", self.tracking]
        flags = ["--address", self.address, "--python", sys.executable, "--follow"]
        command = [sys.executable, "-m", "workflows.cli", "submit", *flags, "--", *words, *where]
        environment = os.environ if token is None else {**os.environ, "RAY_AUTH_TOKEN": token}
        return subprocess.Popen(self.third.command(*command), stderr=subprocess.PIPE, text=True, env=environment)

    def runs(self, stage):
        client = MlflowClient(self.tracking, self.tracking)
        experiment = client.get_experiment_by_name("pictures")
        return client.search_runs([experiment.experiment_id], f"tags.`ddpm.stage` = '{stage}'")


@pytest.fixture(scope="module")
def site(third, hosts_with_ray, bridge_store, tmp_path_factory):
    """With a champion, made by a job that the third host sent."""
    bridge_store.client.create_bucket(Bucket="cluster")
    site = Site(third, hosts_with_ray, tmp_path_factory.mktemp("site"))
    add_digits(site.source, range(300))
    process = site.submit("run", "smoke", "--source", str(site.source), "--name=pictures", *ELASTIC)
    code, said = finish(process)

    assert code == 0, said
    assert "models:/pictures/1  (champion: there was no champion)" in said
    return site


def finish(process):
    _, said = process.communicate(timeout=2 * LIMIT_S)
    return process.returncode, said


def test_another_token_is_refused_in_one_line(site):
    code, said = finish(site.submit("verify", "pictures", token="0" * 64))

    assert code == 2
    assert said.count("\n") == 1
    assert "wants its token" in said


def test_a_retraining_goes_on_without_a_host_that_is_lost(site, bridge_store, hosts_with_ray):
    add_digits(site.source, range(300, 600))
    process = site.submit("retrain", "--name=pictures", *ELASTIC, *SLOW)
    wait_for(lambda: len(attempts(bridge_store, r"step-000000[4-9]0/COMMIT")) > 0, process)
    hosts_with_ray.lose(hosts_with_ray.second, "kill")
    code, said = finish(process)
    (run,) = site.runs("retrain")

    assert code == 0, said
    assert attempts(bridge_store, "attempt-2/attempt.json")
    assert run.info.status == "FINISHED"
    assert run.data.tags["ddpm.outcome"] in ("promoted", "refused")
    assert json.loads(run.data.tags["ddpm.reasons"])


def attempts(store, pattern):
    """The files of this kind that a training of many steps has left."""
    found = store.client.list_objects_v2(Bucket="cluster", Prefix="runs/train/").get("Contents", [])
    return [key["Key"] for key in found if re.search(pattern, key["Key"])]
