"""The jobs with an MLflow server in place of a database of their own: it refuses what that would let pass."""

import json
from collections import Counter

import pytest
from faulty_store import open_proxy
from mlflow_servers import TrackingServer

from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

pytestmark = pytest.mark.ray
PARTS = {32: 2, 320: 20}
"""of a sample run of so many pictures, in chunks of 16"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def storage(server, ddpm, cluster, tmp_path_factory):
    """With a model of few steps, registered at the server."""
    storage = tmp_path_factory.mktemp("storage")
    where = ["--storage", str(storage), "--tracking-uri", server.uri, "--address", cluster.address, "--json"]
    ddpm("shard", "smoke", *where)
    trained = json.loads(ddpm("train", "smoke", "--steps", "5", *where).stdout.splitlines()[-1])

    assert trained["model"] == "models:/smoke/1"
    return storage


def test_a_model_and_samples_of_chosen_classes_go_through_a_tracking_server_and_come_back(
    server, storage, ddpm, cluster, tmp_path
):
    where = ["--storage", str(storage), "--tracking-uri", server.uri]
    flags = ["--num", "8", "--labels", "7", "3", "--address", cluster.address]
    ddpm("sample", "smoke", "--model", "smoke@candidate", *flags, *where)
    ddpm("pull", "model", "smoke@candidate", str(tmp_path / "model"), *where)
    ddpm("pull", "samples", "smoke", str(tmp_path / "pulled"), "--as", "webdataset", *where)
    shards = open_shard_set(Folder(tmp_path / "pulled"))
    labels = [label for tar in shards.tars for label in shards.manifest(tar, ["label"])["label"].to_pylist()]

    assert (tmp_path / "model" / "model.safetensors").exists()
    assert labels == [7, 3] * 4


@pytest.mark.chaos
def test_ten_times_as_many_samples_ask_mlflow_no_more_often_but_for_the_files_that_they_fill(
    server, storage, ddpm, cluster
):
    calls_of_sampling(16, server, storage, ddpm, cluster)  # puts a grid on the model's page, to be pulled from now on
    few, many = (calls_of_sampling(num, server, storage, ddpm, cluster) for num in PARTS)

    assert few["other"] == many["other"] < 100
    assert many["artifact"] - few["artifact"] == 2 * (PARTS[320] - PARTS[32])  # a tar, and its part of the manifest


def calls_of_sampling(num, server, storage, ddpm, cluster):
    """How often a sample run of so many pictures asks MLflow, for artifacts and for anything else."""
    with open_proxy(server.uri.removeprefix("http://")) as proxy:
        where = ["--storage", str(storage), "--tracking-uri", f"http://{proxy.endpoint}", "--address", cluster.address]
        ddpm("sample", "smoke", "--model", "smoke@candidate", "--num", str(num), "--seed", "5", *where)
        calls = [call for bucket in proxy.buckets.values() for call in bucket.calls]
    return Counter("artifact" if "mlflow-artifacts/artifacts/" in call.name else "other" for call in calls)
