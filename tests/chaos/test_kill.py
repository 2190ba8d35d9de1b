"""`kill -9` in the middle of training: what comes out in the end is bitwise what an unbroken run gives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.ray

STEPS = 120
TRAIN = ["--train.steps", str(STEPS), "--train.checkpoint-every", "20", "--train.keep-checkpoints", "1"]
DDPM = [sys.executable, "-m", "workflows.cli"]


def flags(words):
    return [word.replace("--train.", "--") for word in words]


@pytest.fixture(scope="module")
def data(cluster, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("data") / "smoke")
    subprocess.run([*DDPM, "shard", "smoke", "--out", out, "--storage", out, "--address", cluster.address], check=True)
    return out


def train_command(data, storage, cluster):
    return [
        *DDPM,
        "train",
        "smoke",
        *flags(TRAIN),
        "--data",
        data,
        "--storage",
        str(storage),
        "--address",
        cluster.address,
    ]


def final_weights(storage):
    (file,) = Path(storage).glob(f"train/*/attempt-*/step-{STEPS:08d}/ema-0.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def unbroken(data, cluster, tmp_path_factory):
    storage = tmp_path_factory.mktemp("unbroken")
    subprocess.run(train_command(data, storage, cluster), check=True)
    return final_weights(storage)


def wait_for(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError


def test_a_killed_worker_costs_time_and_nothing_else(data, unbroken, cluster, tmp_path):
    process = subprocess.Popen(train_command(data, tmp_path, cluster), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000020/COMMIT")))
    (attempt,) = tmp_path.glob("train/*/attempt-1/attempt.json")
    os.kill(json.loads(attempt.read_text())["pid"], signal.SIGKILL)
    _, said = process.communicate()
    weights = final_weights(tmp_path)

    assert process.returncode == 0, said
    assert len(list(tmp_path.glob("train/*/attempt-2"))) == 1
    assert all(weights[name].equal(value) for name, value in unbroken.items())


@pytest.mark.chaos
def test_a_killed_driver_takes_its_ray_with_it_and_the_next_run_goes_on(data, unbroken, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smoke").symlink_to(data)
    command = [*DDPM, "run", "smoke", *TRAIN, "--storage", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000040/COMMIT")))
    process.kill()
    process.wait()
    wait_for(lambda: not processes_with(str(tmp_path)), timeout_s=20)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    weights = final_weights(tmp_path)

    assert again.returncode == 0, again.stderr
    assert int(re.search(r"going on from the checkpoint at step (\d+) of", again.stderr)[1]) >= 40
    assert all(weights[name].equal(value) for name, value in unbroken.items())


def processes_with(text):
    """Command lines of other processes that name this text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words and entry.parent.name != str(os.getpid()):
            found.append(words)
    return found
