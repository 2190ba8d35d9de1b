"""The whole job on a real Ray and a real MLflow: run once for the session, then looked at from every side."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from mlflow import MlflowClient
from PIL import Image
from pyarrow import csv

from diffusion.checkpoint import load_model
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

pytestmark = pytest.mark.ray


def test_the_run_ends_with_a_champion_samples_and_their_metrics(whole):
    assert whole["model"] == "models:/smoke/1"
    assert whole["champion"]
    assert whole["reused"] == []
    assert whole["metrics"]["n"] == 40
    assert np.isfinite(list(whole["metrics"].values())).all()


def test_its_metrics_say_how_sure_they_are(whole):
    metrics = whole["metrics"]

    assert metrics["frechet_thumbnails_low"] < metrics["frechet_thumbnails"] < metrics["frechet_thumbnails_high"]
    assert metrics["kernel_thumbnails_error"] > 0
    assert 0 <= metrics["precision_thumbnails"] <= 1
    assert 0 <= metrics["recall_thumbnails"] <= 1


def test_the_same_run_again_reuses_every_stage_in_seconds(ddpm, whole, storage):
    started = time.monotonic()
    done = ddpm("run", "smoke", "--storage", str(storage), "--json")
    again = json.loads(done.stdout.splitlines()[-1])

    assert again["reused"] == ["shard", "train", "sample"]
    assert {**again, "reused": [], "why": ""} == {**whole, "why": ""}
    assert "already done, reused" in done.stderr
    assert time.monotonic() - started < 60  # starting Ray alone would take a good part of it


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_stock_webdataset_reads_every_sample(whole):
    shards = open_shard_set(Folder(whole["data"]))
    urls = [f"{whole['data']}/{tar.name}" for tar in shards.tars]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))

    assert len(samples) == 1797
    assert len({sample["__key__"] for sample in samples}) == 1797
    assert {int(sample["cls"]) for sample in samples} == set(range(10))
    assert all(Image.open(io.BytesIO(sample["png"])).size == (8, 8) for sample in samples[:50])


def test_the_making_of_the_shards_is_a_run_with_counts_a_contact_sheet_a_histogram_and_the_digest(
    whole, storage, tmp_path
):
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`ddpm.stage` = 'shard'")
    (data,) = run.inputs.dataset_inputs
    place = Path(client.download_artifacts(run.info.run_id, "shards", str(tmp_path)))
    histogram = csv.read_csv(place / "class_histogram.csv").to_pydict()

    assert run.info.status == "FINISHED"
    assert run.data.metrics["num_train"] + run.data.metrics["num_val"] == 1797
    assert run.data.metrics["num_refused"] == 0
    assert run.data.metrics["images_per_s"] > 0
    assert data.dataset.digest == run.data.tags["ddpm.dataset_digest"] == whole["digest"]
    assert histogram["class"] == list(range(10))
    assert [sum(counts) for counts in (histogram["train"], histogram["val"])] == [
        run.data.metrics["num_train"],
        run.data.metrics["num_val"],
    ]
    assert min(Image.open(io.BytesIO((place / "contact_sheet.png").read_bytes())).size) > 500


def test_the_samples_are_a_shard_set_like_any_other(whole):
    shards = open_shard_set(Folder(whole["samples"]))
    labels = [label for tar in shards.tars for label in shards.manifest(tar, ["label"])["label"].to_pylist()]

    assert shards.num_samples("train") == 40
    assert sorted(labels) == sorted(list(range(10)) * 4)
    assert all(len(shards.checked_tar(tar)) == tar.num_bytes for tar in shards.tars)


def test_the_grid_is_a_picture_of_every_sample(whole):
    with Image.open(whole["grid"]) as grid:
        pixels = np.asarray(grid)

    assert pixels.shape[0] < pixels.shape[1]  # 4 rows of 10
    assert pixels.std() > 10


PREDICT = """
import io, sys
sys.modules["diffusion"] = sys.modules["workflows"] = None  # as if they were not installed
import mlflow, pandas as pd, numpy as np
from mlflow import MlflowClient
from PIL import Image
from pyarrow import csv
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/smoke@champion")
alone = model.predict(pd.DataFrame({"seed": [7], "label": [3]}))
batch = model.predict(pd.DataFrame({"seed": [5, 6, 7, 8], "label": [1, 2, 3, 4]}))
assert list(batch.columns) == ["seed", "png"] and list(batch["seed"]) == [5, 6, 7, 8]
assert alone["png"][0] == batch["png"][2]
assert batch["png"][1] != batch["png"][2]
assert Image.open(io.BytesIO(alone["png"][0])).size == (8, 8)
settings = {"steps": 10, "sampler": "ddpm", "guidance": 1.0}
more = model.predict(pd.DataFrame({"seed": [7], "label": [3]}), params=settings)
assert more["png"][0] != alone["png"][0]
unlabelled = model.predict(pd.DataFrame({"seed": [7]}))
assert unlabelled["png"][0] != alone["png"][0]
"""


def test_the_champion_draws_the_same_picture_alone_or_in_a_batch_without_this_project_or_pickle(whole, storage):
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, f"sqlite:///{storage}/mlflow.db"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_no_pickle_is_logged(whole, storage):
    names = [path.name for path in (storage / "mlflow-artifacts").rglob("*") if path.is_file()]

    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]


def test_a_pulled_model_is_the_one_that_was_trained(ddpm, whole, storage, tmp_path):
    ddpm("pull", "model", "smoke@champion", str(tmp_path / "model"), "--storage", str(storage))
    model = load_model(lambda name: (tmp_path / "model" / name).read_bytes())
    checkpoints = sorted((storage / "train").glob("*/attempt-1/step-00000020/ema-0.safetensors"))

    assert model.classes == [str(digit) for digit in range(10)]
    assert len(checkpoints) == 1
    from safetensors.torch import load_file

    saved = load_file(checkpoints[0])
    assert all(torch.equal(value, saved[name]) for name, value in model.unet.state_dict().items())


def test_a_model_pulled_for_diffusers_names_the_same_noise_there(ddpm, whole, storage, tmp_path):
    from diffusers import UNet2DModel

    ddpm("pull", "model", "smoke", str(tmp_path / "theirs"), "--format", "diffusers", "--storage", str(storage))
    ddpm("pull", "model", "smoke", str(tmp_path / "ours"), "--storage", str(storage))
    theirs = UNet2DModel.from_pretrained(tmp_path / "theirs" / "unet", low_cpu_mem_usage=False).eval()
    ours = load_model(lambda name: (tmp_path / "ours" / name).read_bytes()).unet
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 10, 999]), torch.tensor([0, 4, 10])
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, t, labels, return_dict=False)[0], ours(x, t, labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["png", "webdataset", "npz"])
def test_pulled_samples_are_all_there(ddpm, whole, storage, tmp_path, form):
    ddpm("pull", "samples", "smoke", str(tmp_path / "out"), "--as", form, "--storage", str(storage))

    if form == "png":
        assert len(list((tmp_path / "out").glob("?/*.png"))) == 40
    elif form == "npz":
        with np.load(tmp_path / "out" / "samples.npz") as arrays:
            assert (arrays["arr_0"].shape, arrays["arr_1"].shape) == ((40, 8, 8, 1), (40,))
    else:
        assert open_shard_set(Folder(tmp_path / "out")).digest == open_shard_set(Folder(whole["samples"])).digest


def test_pulling_onto_something_is_refused_and_leaves_it(ddpm, whole, storage, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = ddpm("pull", "model", "smoke", str(tmp_path), "--storage", str(storage), check=False)

    assert done.returncode == 2
    assert "destination must not exist yet" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cats", "there are: smoke"),
        ("smoke@best", "smoke has smoke@candidate, smoke@champion"),
        ("smoke/9", "smoke has"),
    ],
)
def test_a_model_that_does_not_exist_is_refused_with_those_that_do(ddpm, whole, storage, name, message):
    done = ddpm("sample", "smoke", "--model", f"models:/{name}", "--storage", str(storage), check=False)

    assert done.returncode == 2
    assert message in done.stderr


def test_every_edge_of_the_lineage_is_logged(whole, storage):
    from workflows.storage import Environment
    from workflows.tracking import Tracker, model_version

    tracker = Tracker(Environment(storage=str(storage)))
    samples = tracker.run(whole["sample_run"])
    model = model_version(tracker, samples.tags["ddpm.model"])
    training = tracker.run(model.run_id)

    assert model.uri == whole["model"]
    assert samples.tags["ddpm.training_run"] == model.run_id
    assert training.tags["ddpm.dataset_digest"] == whole["digest"] == samples.tags["ddpm.dataset_digest"]
    assert training.metrics["loss"] > 0


def test_settings_that_do_not_fit_what_is_there_are_refused_not_overwritten(ddpm, whole, storage):
    before = Path(whole["data"], "dataset.json").read_bytes()
    done = ddpm("run", "smoke", "--shard.val-fraction", "0.5", "--storage", str(storage), check=False)

    assert done.returncode == 2
    assert "holds a shard set made with another val_fraction" in done.stderr
    assert Path(whole["data"], "dataset.json").read_bytes() == before


def test_more_workers_than_the_cluster_has_room_for_are_refused_by_the_job(ddpm, cluster, whole, storage):
    done = ddpm(
        "run", "smoke", "--train.seed", "1", "--train.num-workers", "64", "--storage", str(storage),
        "--address", cluster.dashboard, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "num_workers=64 with 1 CPU each take 64, but the cluster has" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_no_node_can_hold_is_refused_and_leaves_nothing(ddpm, cluster, tmp_path):
    out = tmp_path / "out"
    done = ddpm(
        "shard", "smoke", "--cpus-per-worker", "512", "--out", str(out), "--storage", str(tmp_path / "runs"),
        "--address", cluster.address, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "cpus_per_worker must be at most" in done.stderr
    assert not out.exists()


@pytest.mark.chaos
def test_a_flat_folder_of_colour_pictures_trains_a_model_without_classes(ddpm, cluster, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (200, 12, 12, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    done = ddpm(
        "run", "smoke", "--source", str(tmp_path), "--name", "noise", "--storage", str(tmp_path / ".runs"),
        "--train.steps", "3", "--num", "5", "--address", cluster.dashboard, "--json",
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    shards = open_shard_set(Folder(result["samples"]))

    assert "this has none: drawing without" in done.stderr
    assert result["model"] == "models:/noise/1"
    assert (shards.classes, shards.channels, shards.num_samples("train")) == ([], 3, 5)
    assert open_shard_set(Folder(result["data"])).rejects == {"unknown_format": 1}

    again = ddpm(
        "sample",
        "--name",
        "noise",
        "--num",
        "3",
        "--storage",
        str(tmp_path / ".runs"),
        "--address",
        cluster.address,
        "--json",
    )  # as the README says: the settings are those that the model was saved with, not those of the default preset
    drawn = Folder(json.loads(again.stdout.splitlines()[-1])["samples"]).read_json("config.json")["sample"]
    assert (drawn["num"], drawn["sampler"], drawn["steps"], drawn["guidance"]) == (3, "ddim", 5, 1.0)


def test_settings_are_in_mlflow_as_they_are_typed(whole, client):
    told = client.get_run(whole["sample_run"]).data.params

    assert (told["features"], told["labels"], told["sampler"]) == ("thumbnails", "", "ddim")
