import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from workflows.cli import main


@pytest.fixture
def ddpm(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_help_lists_every_command_and_the_presets(ddpm):
    code, out, _ = ddpm("--help")

    assert code == 0
    assert all(f"  {name} " in out for name in ("run", "shard", "train", "average", "sample", "restore", "ui"))
    assert "digits, cifar10, smoke" in out


def test_no_command_at_all_is_a_wrong_call(ddpm):
    assert ddpm()[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "command must be one of run, .*got 'fly'"),
        (["pull", "everything"], "command must be one of .*got 'pull everything'"),
        (["run", "cats"], "preset must be one of digits, cifar10, smoke, got 'cats'"),
        (["run", "--train.steps", "0"], "steps must be at least 1, got 0"),
        (["run", "--train.steps", "x"], "--train.steps.*'x'"),
        (["run", "--train.stepz", "1"], "--train.stepz"),
        (["run", "--train.precision", "fp8"], "'fp8' for argument '--train.precision'"),
        (["run", "--image-size", "18"], "image_size must be a positive multiple of 4 .*got 18"),
        (["sample", "--num", "0"], "num must be at least 1, got 0"),
        (["run", "digits", "--config", "x.yaml"], "not both: got digits and x.yaml"),
        (["run", "--config", "x.yaml"], "there is none at x.yaml"),
        (["run", "--source", "nowhere"], "there is none of these at .*nowhere"),
        (["train"], "no finished shard set at .*runs/data/digits"),
        (["sample"], "there is no model digits: nothing has been tracked in"),
        (["shard", "smoke", "--address", "http://x"], "address must be a Ray address"),
        (["shard", "smoke", "--address", "127.0.0.1:1"], "must be a Ray cluster's host:port, got '127.0.0.1:1'"),
        (["shard", "--source", ""], "source must be one or more folders of images"),
        (["run", "smoke", "--train.lr", "inf"], "lr must be above 0 and finite, got inf"),
        (["sample", "--guidance", "inf"], "guidance must be at least 0 and finite, got inf"),
        (["run", "smoke", "--tracking-uri", "file:///tmp/x"], "tracking_uri must begin with .*got 'file:///tmp/x'"),
        (["run", "smoke", "--tracking-uri", "databricks"], "tracking_uri must begin with .*got 'databricks'"),
        (["pull", "model", "digits", "out"], "there is no model digits: nothing has been tracked"),
        (["pull", "samples", "digits", "out"], "there are no samples of 'digits': nothing has been tracked"),
        (["retrain"], "no finished shard set at .*runs/data/digits"),
        (["retrain", "smoke"], "no finished shard set at .*runs/data/smoke"),
        (["retrain", "--min-new", "0"], "min_new must be at least 1, got 0"),
        (["run", "--min-new", "1"], "--min-new"),
        (["promote", "digits"], "model must be NAME/VERSION or NAME@alias, got 'digits'"),
        (["promote", "digits/1"], "there is no model digits/1: nothing has been tracked"),
        (["rollback", "digits"], "there is no model digits: nothing has been tracked"),
        (["champions", "digits"], "there is no model digits: nothing has been tracked"),
        (["config", "--config", "/tmp"], "there is none at /tmp"),
        (["config", "--name", "x" * 101], "name must be 1 to 100 letters"),
    ],
)
def test_a_wrong_call_gets_one_line_and_exit_code_2(ddpm, words, message, tmp_path):
    code, out, err = ddpm(*words)

    assert code == 2
    assert out == ""
    assert err.startswith("ddpm: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize("files", [[], ["notes.txt", "class/readme.md"]])
def test_a_source_without_images_is_refused_and_nothing_is_left_behind(ddpm, files, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in files:
        (tmp_path / "empty" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "empty" / name).write_text("words")

    code, _, err = ddpm("run", "--source", "empty")

    assert code == 2
    assert "source must have at least one image" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_storage_that_cannot_be_written_is_refused(ddpm, tmp_path):
    (tmp_path / "file").write_text("mine")

    code, _, err = ddpm("run", "smoke", "--storage", "file")

    assert code == 2
    assert "storage must be a folder that can be written" in err
    assert err.count("\n") == 1


def test_an_mlflow_server_that_does_not_answer_is_refused_before_any_work(ddpm, tmp_path):
    uri = f"http://127.0.0.1:{closed_port()}"

    code, _, err = ddpm("run", "smoke", "--tracking-uri", uri)

    assert code == 2
    assert f"tracking_uri must be an MLflow server that answers; {uri} does not" in err
    assert not (tmp_path / "runs" / "data").exists()


def test_a_ray_address_where_nobody_listens_is_refused(ddpm):
    uri = f"http://127.0.0.1:{closed_port()}"

    code, _, err = ddpm("run", "smoke", "--address", uri)

    assert code == 2
    assert f"no Ray cluster answers at address {uri}" in err


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cli", "run", "cats", "--debug"], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ, check=False,
    )  # fmt: skip

    assert "Traceback" in done.stderr
    assert "preset must be one of" in done.stderr


def test_config_prints_yaml_that_gives_the_same_config_back(ddpm, tmp_path):
    code, out, _ = ddpm("config", "smoke", "--train.steps", "7")
    (tmp_path / "mine.yaml").write_text(out)
    again, same, _ = ddpm("config", "--config", "mine.yaml")

    assert (code, again) == (0, 0)
    assert same == out
    assert yaml.safe_load(out)["train"]["steps"] == 7


def test_json_is_the_last_line_of_stdout(ddpm):
    _, out, _ = ddpm("config", "smoke", "--json")

    assert json.loads(out.splitlines()[-1])["name"] == "smoke"


def test_a_run_on_a_folder_is_named_after_it_unless_told_otherwise(ddpm, tmp_path):
    picture(tmp_path / "cats" / "a.png")
    named = [
        json.loads(ddpm("config", "--json", *words)[1].splitlines()[-1])["name"]
        for words in (["--source", "cats/"], ["--shard.source=cats"], ["--source", "cats", "--name", "mine"], [])
    ]

    assert named == ["cats", "cats", "mine", "digits"]
