"""`ddpm evaluate` on a real Ray: real pictures beside others of their kind, beside noise, and beside samples."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient
from moved_storage import moved

from diffusion.data.images import encode_png
from diffusion.data.shard_set import Header, commit, open_shard_set
from diffusion.data.shards import Sample, write_shard
from diffusion.files import Folder
from workflows.config import EvaluateStage
from workflows.evaluate import run
from workflows.lineage import lineage
from workflows.metrics.measure import Subject, labels_asked
from workflows.storage import Environment

pytestmark = pytest.mark.ray
BOTH = ("--features", "thumbnails", "dataset")


@pytest.fixture(scope="module")
def place(whole, storage, tmp_path_factory):
    """A copy of the storage, which evaluations add to."""
    place = tmp_path_factory.mktemp("copy") / "runs"
    moved(storage, place)
    return place


@pytest.fixture(scope="module")
def client(place):
    uri = f"sqlite:///{place}/mlflow.db"
    return MlflowClient(uri, uri)


@pytest.fixture(scope="module")
def evaluate(ddpm, place, cluster):
    """The command, on the session's Ray; its result."""

    def call(*words):
        where = ("--storage", str(place), "--address", cluster.address, "--json")
        return json.loads(ddpm("evaluate", *map(str, words), *where).stdout.splitlines()[-1])

    return call


def write_set(place, pictures, labels, num_classes=10):
    """A shard set of these pictures."""
    out = Folder(place)
    samples = []
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        image = encode_png(picture)
        sha256 = hashlib.sha256(image).hexdigest()
        side = picture.shape[0]
        samples.append(
            Sample(
                index=index, split="train", image=image, label=label, side=side, source=str(index),
                source_sha256=sha256,
            )
        )  # fmt: skip
    header = Header(
        image_size=pictures.shape[1], channels=pictures.shape[3], classes=list(map(str, range(num_classes))),
        config={}, config_fingerprint="", source_fingerprint="",
    )  # fmt: skip
    return commit(header, [write_shard(0, samples, [], out)], out)


@pytest.fixture(scope="module")
def real(evaluate, whole):
    """Held-out digits beside the others."""
    return evaluate(whole["data"], "--data", whole["data"], "--split", "val", *BOTH)["metrics"]


@pytest.fixture(scope="module")
def noise(evaluate, whole, tmp_path_factory):
    """As many pictures of noise."""
    num = open_shard_set(Folder(whole["data"])).num_samples("val")
    pictures = np.random.default_rng(0).integers(0, 256, (num, 8, 8, 1), dtype=np.uint8)
    shards = write_set(tmp_path_factory.mktemp("noise") / "set", pictures, np.arange(num) % 10)
    return evaluate(shards.folder.uri, "--data", whole["data"], *BOTH)["metrics"]


@pytest.mark.parametrize("kind", ["thumbnails", "dataset"])
def test_held_out_pictures_are_near_and_noise_is_far(real, noise, kind):
    assert real["n"] == noise["n"] > 100
    assert real[f"frechet_{kind}"] == pytest.approx(real[f"frechet_{kind}_held_out"])  # they are those
    assert noise[f"frechet_{kind}"] > 10 * real[f"frechet_{kind}"]
    assert abs(real[f"kernel_{kind}"]) < 4 * real[f"kernel_{kind}_error"]
    assert noise[f"kernel_{kind}"] > 4 * noise[f"kernel_{kind}_error"]
    assert real[f"precision_{kind}"] > 0.7
    assert noise[f"precision_{kind}"] < 0.1


def test_a_net_of_the_data_knows_its_classes(real, noise):
    assert real["label_agreement_dataset"] > 0.9
    assert real["label_agreement_dataset_worst"] > 0.7
    assert real["inception_score_dataset"] > 7
    assert noise["label_agreement_dataset"] < 0.3


def test_held_out_pictures_are_no_copies(real):
    assert real["nearest_distance_ratio"] == pytest.approx(1)
    assert real["nearest_label_agreement"] > 0.9


def test_copies_are_told(evaluate, whole):
    found = evaluate(whole["data"], "--data", whole["data"], "--features", "thumbnails")["metrics"]

    assert found["nearest_distance"] == 0
    assert found["nearest_distance_ratio"] == 0
    assert found["frechet_thumbnails"] == pytest.approx(0, abs=1e-9)


def test_the_net_is_trained_once_and_tracked_by_the_datas_digest(real, whole, client):
    experiment = client.get_experiment_by_name("smoke")
    runs = client.search_runs([experiment.experiment_id], "tags.`ddpm.stage` = 'features'")
    (run,) = runs

    assert run.data.tags["ddpm.dataset_digest"] == whole["digest"]
    assert run.data.metrics["accuracy"] > 0.9
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["classifier.safetensors"]


def test_samples_are_measured_again_from_the_storage_or_from_mlflow(evaluate, whole, client):
    found = evaluate(whole["sample_run"], "--bits-images", "20")
    metrics, drawn = found["metrics"], client.get_run(whole["sample_run"]).data.metrics
    run = client.get_run(found["run"])

    assert metrics["frechet_thumbnails"] == pytest.approx(whole["metrics"]["frechet_thumbnails"])
    assert metrics["n"] == 40
    assert metrics["bits_per_dim_n"] == 20
    assert metrics["bits_per_dim_low"] < metrics["bits_per_dim"] < metrics["bits_per_dim_high"]
    assert drawn["frechet_dataset"] == pytest.approx(metrics["frechet_dataset"])
    assert run.data.tags["ddpm.model"] == whole["model"]
    assert [file.path for file in client.list_artifacts(found["run"])] == ["neighbours.png"]
    assert evaluate("smoke", "--bits-images", "20")["run"] == found["run"]  # the newest of the model; done already


def test_a_measurement_came_of_the_samples_that_it_measured_and_a_net_of_its_data(evaluate, real, whole, place, client):
    experiment = client.get_experiment_by_name("smoke").experiment_id
    (net,) = client.search_runs([experiment], "tags.`ddpm.stage` = 'features'")
    measured = evaluate(whole["sample_run"], "--features", "thumbnails")["run"]

    def kinds(name):
        tree, _ = lineage(Environment(storage=str(place)), name)
        found = [tree]
        while found[-1].children:
            (child,) = found[-1].children
            found.append(child)
        return [node.kind for node in found]

    assert kinds(measured) == ["data", "train", "model", "sample", "evaluate"]
    assert kinds(net.info.run_id) == ["data", "features"]


def test_beside_held_out_pictures_the_training_pictures_take_their_place(evaluate, whole, client):
    found = evaluate(whole["sample_run"], "--reference", "val", "--features", "thumbnails")["metrics"]
    drawn = client.get_run(whole["sample_run"]).data.metrics  # beside training pictures, and it stays so

    assert found["frechet_thumbnails"] != pytest.approx(drawn["frechet_thumbnails"], rel=1e-3)
    assert found["frechet_thumbnails_held_out"] == pytest.approx(drawn["frechet_thumbnails_held_out"])
    assert found["nearest_distance_ratio"] == drawn["nearest_distance_ratio"]
    assert drawn["frechet_thumbnails"] == pytest.approx(whole["metrics"]["frechet_thumbnails"])


def test_samples_that_have_gone_from_the_storage_come_back(evaluate, whole, place):
    (folder,) = (place / "samples").iterdir()
    digest, before = open_shard_set(Folder(folder)).digest, {file.name for file in folder.iterdir()}
    shutil.rmtree(folder)
    shutil.rmtree(place / "features/thumbnails")
    asked = ("--reference", "val", "--features", "thumbnails", "--bits-images", "1")
    found = evaluate(whole["sample_run"], *asked)["metrics"]

    assert found["n"] == 40
    assert open_shard_set(Folder(folder)).digest == digest
    assert before - {file.name for file in folder.iterdir()} <= {"plan", "config.json"}  # so it counts as done


@pytest.mark.parametrize(("classes", "are_asked"), [(3, True), (2, False), (0, False)])
def test_labels_are_compared_with_those_of_data_that_has_the_same_classes(classes, are_asked, tmp_path):
    pictures = np.zeros((6, 8, 8, 1), np.uint8)
    mine = write_set(tmp_path / "mine", pictures, [0, 1] * 3, num_classes=2)
    data = write_set(tmp_path / "data", pictures, [-1] * 6, num_classes=classes)
    others = replace(data, classes=["cat", "dog"][:classes]) if classes < 3 else data
    labels = labels_asked(Subject(mine, "train", "key"), others)

    assert labels.tolist() == ([0, 1] * 3 if are_asked else [-1] * 6)


def wrong_calls(whole, small):
    data = whole["data"]
    return [
        (("nothing", "", {}), "run must be the id of a run in .*, got 'nothing'"),
        ((data, "", {}), "data must be given, the shard set to compare .* with"),
        ((small, data, {}), "pictures must be of the data's size and channels, 8x8x1, got 4x4x1"),
        ((data, data, {"bits_images": 3}), "bits_images must be 0 for pictures that no model drew, got 3"),
        ((data, data, {"features": ("inception",), "inception_weights": "/no/file"}), "/no/file cannot be read"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_what_cannot_be_measured_is_refused_in_a_line_before_ray_is_asked(number, whole, place, tmp_path):
    small = write_set(tmp_path / "small", np.zeros((5, 4, 4, 1), np.uint8), [0] * 5).folder.uri
    (what, data, settings), message = wrong_calls(whole, small)[number]
    environment = Environment(storage=str(place), address="127.0.0.1:1")
    with pytest.raises(ValueError, match=message):
        run(environment, what, data, "train", EvaluateStage(**settings))


@pytest.mark.parametrize("features", [(), ("pixels",)])
def test_features_that_there_are_not_are_refused(features):
    with pytest.raises(ValueError, match="features must be some of thumbnails, dataset, inception, got "):
        EvaluateStage(features=features)
