"""Training through what befalls a run at night: another number of workers, a tracking server or a storage away."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_servers import TrackingServer
from safetensors.torch import load_file
from smoke_training import differing, final_weights, newest_step, shard_smoke, train_command
from waiting import LIMIT_S, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

EXACT = ["--precision=fp32", "--cpus-per-worker=0.5", "--model.dropout=0", "--log-every=1", "--checkpoint-every=10"]
AWAY_S = 60


@pytest.fixture(scope="module")
def data(cluster, tmp_path_factory):
    return shard_smoke(tmp_path_factory.mktemp("data") / "smoke", "--address", cluster.address)


def train(data, storage, steps, *words):
    return train_command(data, storage, steps, *EXACT, *words)


def loss_by_step(client):
    """Of all runs of the training, the later ones last."""
    experiment = client.get_experiment_by_name("smoke")
    runs = client.search_runs([experiment.experiment_id], "tags.`ddpm.stage` = 'train'", order_by=["start_time ASC"])
    return {
        point.step: point.value
        for run in runs
        for point in client.get_metric_history(run.info.run_id, "loss")
    }  # fmt: skip


def test_the_loss_curve_is_the_same_while_the_number_of_workers_changes(data, cluster, tmp_path):
    """Its later drift, of sums in another order, is what tests/bench/RESULTS.md shows."""
    steps, changes = 600, {75: 2, 150: 1, 225: 3, 600: 2}
    subprocess.run([*train(data, tmp_path / "unbroken", steps), f"--address={cluster.address}"], check=True)
    for until, num_workers in changes.items():
        words = (f"--num-workers={num_workers}", f"--address={cluster.address}")
        process = subprocess.Popen(train(data, tmp_path / "changing", steps, *words))
        wait_for(lambda until=until: newest_step(tmp_path / "changing") >= until)
        if until < steps:
            process.terminate()
        assert (process.wait(LIMIT_S) == 0) == (until == steps)
    unbroken, changing = (
        loss_by_step(MlflowClient(f"sqlite:///{tmp_path}/{name}/mlflow.db")) for name in ("unbroken", "changing")
    )
    off = {step: abs(changing[step] / unbroken[step] - 1) for step in unbroken}
    losses = {"unbroken": unbroken, "changing": changing, "workers": changes}
    (tmp_path / "losses.json").write_text(json.dumps(losses))  # for tests/bench/elastic.py
    by_hundreds = [max(off[step] for step in range(start + 1, start + 101)) for start in range(0, steps, 100)]
    print(f"largest relative difference by hundreds of steps ({tmp_path}/losses.json): {by_hundreds}")

    assert changing.keys() == unbroken.keys() == set(range(1, steps + 1))
    assert max(off[step] for step in range(1, 301)) < 1e-4
    assert max(off.values()) > 0  # the workers did add up in another order


def test_a_tracking_server_that_is_away_for_a_minute_stops_nothing_and_gets_all_points_later(data, cluster, tmp_path):
    server = TrackingServer(tmp_path)
    try:
        words = (f"--tracking-uri={server.uri}", f"--address={cluster.address}")
        process = subprocess.Popen(train(data, tmp_path / "runs", 2000, *words), stderr=subprocess.PIPE, text=True)
        wait_for(lambda: newest_step(tmp_path / "runs") >= 20)
        server.stop()
        before = newest_step(tmp_path / "runs")
        time.sleep(AWAY_S)
        meanwhile = newest_step(tmp_path / "runs")
        server.start()
        _, said = process.communicate(timeout=2 * LIMIT_S)
        points = loss_by_step(MlflowClient(server.uri))
    finally:
        server.stop()

    assert process.returncode == 0, said
    assert meanwhile > before + 50
    assert points.keys() == set(range(1, 2001))
    assert said.count("MLflow cannot be told how it goes") >= 1


def test_a_storage_that_is_away_for_a_while_costs_that_while_and_nothing_else(data, store, tmp_path):
    store.client.create_bucket(Bucket="night")
    for path in Path(data).rglob("*"):
        if path.is_file():
            store.client.upload_file(str(path), "night", f"runs/data/smoke/{path.relative_to(data)}")
    words = ("--storage=s3://night/runs", f"--tracking-uri=sqlite:///{tmp_path}/mlflow.db", "--keep-decoded=off")
    command = [*train("s3://night/runs/data/smoke", "unused", 1000, "--block-cache-bytes=0"), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    saved = re.compile(r"PUT runs/train/.*/COMMIT")
    wait_for(lambda: any(saved.match(call.name) for call in list(store.buckets["night"].calls)))
    store.buckets["night"].is_away = True
    time.sleep(AWAY_S / 2)
    store.buckets["night"].is_away = False
    _, said = process.communicate(timeout=2 * LIMIT_S)
    keys = [entry["Key"] for entry in store.client.list_objects_v2(Bucket="night", Prefix="runs/train/")["Contents"]]
    (last,) = [key for key in keys if key.endswith("step-00001000/ema-0.safetensors")]
    store.client.download_file("night", last, str(tmp_path / "ema.safetensors"))
    subprocess.run(train(data, tmp_path / "unbroken", 1000), check=True)
    found, expected = load_file(tmp_path / "ema.safetensors"), final_weights(tmp_path / "unbroken", 1000)

    assert process.returncode == 0, said
    assert store.buckets["night"].num_faults > 0
    assert len({key.split("/")[3] for key in keys if "attempt-" in key}) == 1  # no worker died of it
    assert differing(found, expected) == []
