"""The jobs with an MLflow server in place of a database of their own: it refuses what that would let pass."""

import json

import pytest
from mlflow_servers import TrackingServer

from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


def test_a_model_and_its_samples_go_through_a_tracking_server_and_come_back(server, ddpm, cluster, tmp_path):
    where = ["--storage", str(tmp_path), "--tracking-uri", server.uri]
    on_ray = [*where, "--address", cluster.address, "--json"]
    ddpm("shard", "smoke", *on_ray)
    trained = json.loads(ddpm("train", "smoke", "--steps", "5", *on_ray).stdout.splitlines()[-1])
    ddpm("sample", "smoke", "--model", "smoke@candidate", "--num", "8", *on_ray)
    ddpm("pull", "model", "smoke@candidate", str(tmp_path / "model"), *where)
    ddpm("pull", "samples", "smoke", str(tmp_path / "pulled"), "--as", "webdataset", *where)

    assert trained["model"] == "models:/smoke/1"
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert open_shard_set(Folder(tmp_path / "pulled")).num_samples("train") == 8
