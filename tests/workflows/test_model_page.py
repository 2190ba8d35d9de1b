"""What somebody finds who opens the champion's page in MLflow: a card whose code runs, its numbers, its pictures."""

import os
import re
import subprocess
import sys

import mlflow
import pytest
from PIL import Image

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def version(client):
    return client.get_model_version_by_alias("smoke", "champion")


def test_the_card_says_what_the_model_was_made_of_and_how_good_it_is(version, whole):
    card = version.description

    assert card.startswith("# smoke, version 1\n")
    assert f"digest `{whole['digest']}`, at `{whole['data']}`" in card
    assert f"training run | `{version.run_id}`" in card
    assert version.tags["ddpm.weights_sha256"] in card
    assert "Of 40 samples" in card
    assert f"{whole['metrics']['frechet_thumbnails']:.4g} Fréchet distance" in card


@pytest.mark.chaos  # a minute
def test_the_code_on_the_card_runs(version, model_files, client, tmp_path):
    ours, theirs = re.findall(r"```python\n(.*?)```", version.description, re.DOTALL)
    (theirs_in,) = model_files.glob("**/diffusers")
    script = f"{ours}\nopen('ours.png', 'wb').write(pictures[0])\n{theirs}\nassert x.shape == (1, 1, 8, 8)\n"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": client.tracking_uri, "HF_HUB_OFFLINE": "1"}
    (tmp_path / "diffusers").symlink_to(theirs_in)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)

    with Image.open(tmp_path / "ours.png") as drawn:
        assert drawn.size == (8, 8)


def test_the_metrics_are_the_models_too(client, model_files, whole):
    model_id = mlflow.models.Model.load(str(model_files)).model_id
    logged = {metric.key: metric.value for metric in client.get_logged_model(model_id).metrics}

    assert {name: logged[name] for name in whole["metrics"] if name in logged} == pytest.approx(
        {name: value for name, value in whole["metrics"].items() if name in logged}
    )
    assert {"n", "frechet_thumbnails", "precision_thumbnails"} <= logged.keys()


def test_a_grid_of_samples_lies_beside_the_weights(model_files, whole):
    with Image.open(model_files / "samples.png") as grid, Image.open(whole["grid"]) as expected:
        assert grid.tobytes() == expected.tobytes()


def test_an_example_of_what_to_ask_is_there(model_files):
    model = mlflow.models.Model.load(str(model_files))

    assert model.load_input_example(str(model_files)).to_dict("list") == {"seed": [0, 1], "label": [0, 1]}


def test_nothing_of_it_is_pickled(model_files):
    found = [file.suffix for file in model_files.rglob("*") if file.is_file()]

    assert ".safetensors" in found
    assert not {".pkl", ".pickle", ".pt", ".pth", ".bin"} & set(found)
