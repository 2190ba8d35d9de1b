"""`ddpm sample` where the training data has gone, has come back, or was added to; and of models that are not ours."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from moved_storage import moved

from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from workflows.storage import Environment
from workflows.tracking import Tracker, model_version

pytestmark = pytest.mark.ray


@pytest.fixture
def place(whole, storage, tmp_path):
    """A copy of the storage."""
    moved(storage, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def client(place):
    uri = f"sqlite:///{place}/mlflow.db"
    return MlflowClient(uri, uri)


@pytest.fixture
def sample(ddpm, place, cluster, client):
    """The command, on the session's Ray: the run that it names, and what it said to people."""

    def call(*words):
        done = ddpm(
            "sample", "--name", "smoke", *words, "--storage", str(place), "--address", cluster.address, "--json"
        )
        return client.get_run(json.loads(done.stdout.splitlines()[-1])["run"]), done.stderr

    return call


def test_samples_that_could_not_be_judged_are_judged_when_their_data_is_back(sample, place):
    asked = ("--num", "32", "--seed", "3", "--bits-images", "2")
    (place / "data").rename(place / "away")
    drawn, said = sample(*asked)
    again, _ = sample(*asked)
    (place / "away").rename(place / "data")
    judged, _ = sample(*asked)

    assert "not judged, the training data" in said
    assert drawn.data.metrics.keys() == {"images_per_s"}
    assert again.info.run_id == drawn.info.run_id
    assert judged.info.run_id != drawn.info.run_id
    assert judged.data.metrics["frechet_thumbnails_n"] == 32
    assert judged.data.metrics["bits_per_dim_n"] == 2
    assert "images_per_s" not in judged.data.metrics  # it has drawn none


def test_what_is_judged_beside_data_that_was_added_to_says_nothing_on_the_models_page(sample, client):
    before = client.get_model_version("smoke", "1")
    client.set_model_version_tag("smoke", "1", "ddpm.dataset_digest", "0" * 32)  # what it was trained on is no more
    drawn, said = sample("--num", "32", "--seed", "4")
    (reference,) = [used.dataset for used in drawn.inputs.dataset_inputs]
    logged = client.get_logged_model(before.source.removeprefix("models:/"))

    assert "to which was added since" in said
    assert drawn.data.metrics["frechet_thumbnails_n"] == 32
    assert reference.digest != "0" * 32
    assert client.get_model_version("smoke", "1").description == before.description
    assert drawn.info.run_id not in {metric.run_id for metric in logged.metrics}


def test_a_model_that_somebody_else_has_registered_is_refused_in_a_line(ddpm, place, client, tmp_path):
    client.create_registered_model("resnet")
    client.create_model_version("resnet", str(tmp_path))
    with pytest.raises(ValueError, match="must be a version that ddpm made: models:/resnet/1 was registered by"):
        model_version(Tracker(Environment(storage=str(place))), "resnet/1")
    done = ddpm("lineage", "resnet/1", "--storage", str(place), check=False)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.chaos
def test_a_model_is_trained_on_samples(ddpm, sample, place, cluster):
    drawn, _ = sample("--num", "64", "--seed", "5")
    samples = Folder(drawn.info.artifact_uri.removeprefix("file://")) / "samples"
    shutil.copytree(samples.path, place / "data/drawn")
    ddpm("verify", str(place / "data/drawn"), "--deep", "--storage", str(place), "--address", cluster.address)
    words = ("train", "smoke", "--name", "drawn", "--steps", "2", "--global-batch", "16", "--num-lanes", "4")
    done = ddpm(*words, "--storage", str(place), "--address", cluster.address, "--json")

    assert json.loads(done.stdout.splitlines()[-1])["model"] == "models:/drawn/1"
    assert model_version(Tracker(Environment(storage=str(place))), "drawn/1").tags["ddpm.dataset_digest"] == (
        open_shard_set(Folder(place / "data/drawn")).digest
    )


@pytest.mark.chaos
def test_a_model_of_more_than_a_thousand_timesteps_is_sampled_in_as_many(ddpm, place, cluster):
    where = ("--storage", str(place), "--address", cluster.address, "--json")
    ddpm("train", "smoke", "--name", "long", "--data", str(place / "data/smoke"), "--steps", "1",
         "--diffusion.num-timesteps", "1500", *where)  # fmt: skip
    words = ("--model", "long@candidate", "--sampler", "ddim", "--num", "4", "--features", "thumbnails")
    drawn = ddpm("sample", "--steps", "1500", *words, *where)
    refused = ddpm("sample", "--steps", "1501", *words, *where, check=False)

    assert open_shard_set(Folder(json.loads(drawn.stdout.splitlines()[-1])["samples"])).num_samples("train") == 4
    assert "steps must be at most 1500 for this model, got 1501" in refused.stderr
