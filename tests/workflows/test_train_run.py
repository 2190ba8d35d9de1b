"""`ddpm train` on a real Ray: what stops it, how it says so, and that nothing is lost by it."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

pytestmark = pytest.mark.ray

STEPS = 12
FLAGS = ["--steps", str(STEPS), "--log-every", "3", "--checkpoint-every", "4", "--preview-every", "8", "--json"]


@pytest.fixture(scope="module")
def data(ddpm, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    ddpm("shard", "smoke", "--out", f"{folder}/set", "--storage", str(folder), "--address", cluster.address)
    return folder / "set"


@pytest.fixture
def train(ddpm, cluster, data, tmp_path):
    """`ddpm train smoke` with these words more; the storage is the test's own folder."""

    def call(*words, data=data, storage=tmp_path, check=True):
        where = ["--data", str(data), "--storage", str(storage), "--address", cluster.address]
        return ddpm("train", "smoke", *FLAGS, *where, *words, check=check)

    return call


def weights(storage, step=STEPS):
    """The averages at a step, of the newest attempt that got there."""
    found = sorted(Path(storage).glob(f"train/*/attempt-*/step-{step:08d}/ema-0.safetensors"))
    return load_file(found[-1])


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def result(done):
    return json.loads(done.stdout.splitlines()[-1])


def last_line(done):
    return done.stderr.replace("\r", "\n").splitlines()[-1]


def test_a_run_is_reused_until_it_is_asked_for_afresh_and_its_points_and_previews_are_in_mlflow(train, tmp_path):
    first, again = (result(train()) for _ in range(2))
    before = weights(tmp_path)
    fresh = result(train("--fresh"))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    metrics = client.get_run(first["run"]).data.metrics
    points = [point.step for point in client.get_metric_history(first["run"], "loss")]

    assert (first["model"], again) == ("models:/smoke/1", first)
    assert fresh["model"] == "models:/smoke/2"
    assert [path.name for path in tmp_path.glob("train/*/attempt-*")] == ["attempt-1"]
    assert same(weights(tmp_path), before)
    assert points == [3, 6, 9, 12]
    assert 0 <= metrics["data_wait"] < 1
    assert metrics["mfu"] > 0
    assert metrics["loss"] == pytest.approx(sum(metrics[f"loss_t{i}"] for i in range(1, 5)) / 4, rel=0.1)
    assert [artifact.path for artifact in client.list_artifacts(first["run"], "previews")] == [
        "previews/step-00000008-grid.png",
        "previews/step-00000008-strip.png",
    ]


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_its_keys_and_the_last_good_checkpoint(train, data):
    done = train("--lr", "1e30", "--warmup-steps", "6", "--checkpoint-every", "1", check=False)
    said = last_line(done)
    keys_file = Path(said.partition("the keys of its samples are in ")[2].partition(",")[0])
    bad = json.loads(keys_file.read_text())
    manifest = pytest.importorskip("pyarrow.parquet").read_table(data / "manifest.parquet", columns=["key", "split"])
    known = {row["key"] for row in manifest.to_pylist() if row["split"] == "train"}

    assert done.returncode == 1
    assert f"is not finite at step {bad['step']}" in said
    assert bad["step"] >= 1
    assert len(set(bad["keys"])) == len(bad["keys"]) == 128
    assert set(bad["keys"]) <= known
    assert said.endswith(f"step-{bad['step']:08d}")  # as many steps as were done before it
    assert "Traceback" not in done.stderr


@pytest.mark.chaos
def test_a_damaged_shard_stops_the_run_by_name_and_once_it_is_whole_the_run_goes_on_as_if_nothing_had_been(
    train, data, tmp_path
):
    whole = tmp_path / "whole"
    train(storage=whole)
    damaged = shutil.copytree(data, tmp_path / "damaged")
    tar = sorted(damaged.glob("train-*.tar"))[1]
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    done = train(data=damaged, check=False)

    assert done.returncode == 1
    assert f"shard {tar} is not what its manifest says" in last_line(done)
    assert "Traceback" not in done.stderr

    tar.write_bytes(content)
    train(data=damaged)

    assert same(weights(tmp_path), weights(whole))


@pytest.mark.chaos
def test_the_network_may_be_given_less_at_once(train, tmp_path):
    train(storage=tmp_path / "whole")
    train("--micro-batch", "24", storage=tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")

    assert not same(whole, parts)  # rounding
    assert all((whole[name] - parts[name]).abs().max() < 1e-2 for name in whole)
