"""The champion where this project is not: behind HTTP, and in an environment that has only what the model asks for."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from mlflow_servers import ModelServer
from PIL import Image

pytestmark = pytest.mark.ray

DRAW = """
import mlflow, pandas, sys
assert not {"diffusion", "workflows"} & sys.modules.keys()
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/smoke@champion")
drawn = model.predict(pandas.DataFrame({"seed": [7], "label": [3]}))
open(sys.argv[2], "wb").write(drawn["png"][0])
"""


def draw(python, client, file):
    """Have some Python draw the picture of seed 7 and label 3; its bytes."""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [python, "-c", DRAW, client.tracking_uri, file]
    subprocess.run(command, env=environment, cwd=file.parent, check=True)
    return file.read_bytes()


@pytest.fixture(scope="module")
def served(client):
    server = ModelServer("models:/smoke@champion", client.tracking_uri)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def expected(client, tmp_path_factory):
    return draw(sys.executable, client, tmp_path_factory.mktemp("here") / "drawn.png")


def post(server, rows, **params):
    columns = {"columns": ["seed", "label"], "data": rows}
    body = json.dumps({"dataframe_split": columns, "params": params}).encode()
    request = urllib.request.Request(f"{server.uri}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def test_a_post_is_answered_with_the_pictures_that_the_model_draws_here(served, expected):
    answered = post(served, [[6, 2], [7, 3]])
    pictures = [base64.b64decode(row["png"]) for row in answered]

    assert [row["seed"] for row in answered] == [6, 7]
    assert pictures[1] == expected
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(8, 8), (8, 8)]


def test_a_post_may_ask_for_another_sampler(served, expected):
    (row,) = post(served, [[7, 3]], sampler="ddpm", steps=10)

    assert base64.b64decode(row["png"]) != expected


@pytest.mark.parametrize(
    ("rows", "params", "said"),
    [
        ([[7, 99]], {}, "labels must be 0 to 9 (or 10: any), got 99"),
        ([[7, 3]], {"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_a_post_of_the_impossible_is_answered_with_what_is_wrong(served, rows, params, said):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(served, rows, **params)

    assert caught.value.code == 400
    assert said in json.load(caught.value)["message"]


@pytest.mark.chaos  # installs torch and MLflow: a minute or two
def test_an_environment_with_only_what_the_model_asks_for_draws_the_same_picture(
    client, model_files, expected, tmp_path
):
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    asked = ["--quiet", "-r", model_files / "requirements.txt"]
    subprocess.run([python, "-m", "pip", "install", *asked], check=True)

    assert draw(python, client, tmp_path / "drawn.png") == expected
