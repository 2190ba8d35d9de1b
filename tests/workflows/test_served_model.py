"""The champion where this project is not: behind HTTP, and in an environment that has only what the model asks for."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
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


TWO = """
import mlflow, pandas, sys
ours, other = map(mlflow.pyfunc.load_model, sys.argv[1:3])
for name, model in (("ours", ours), ("other", other), ("again", ours)):
    drawn = model.predict(pandas.DataFrame({"seed": [7], "label": [3]}))
    open(f"{sys.argv[3]}/{name}.png", "wb").write(drawn["png"][0])
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


def test_two_versions_in_one_process_each_run_their_own_code(model_files, expected, tmp_path):
    other = shutil.copytree(model_files, tmp_path / "another")
    (package,) = (other / "code").glob("ddpm_*")
    of_another = package.rename(package.with_name("ddpm_another"))
    (other / "artifacts/model/package.txt").write_text(of_another.name)
    process = of_another / "process.py"
    process.write_text(f"{process.read_text()}\n\nas_it_was = to_uint8\ndef to_uint8(x): return 255 - as_it_was(x)\n")
    subprocess.run([sys.executable, "-c", TWO, model_files, other, tmp_path], cwd=tmp_path, check=True)
    ours, negative = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "other"))

    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "again.png").read_bytes() == expected
    assert (negative == 255 - ours).all()


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
