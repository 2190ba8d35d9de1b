"""`kill -9` in the middle of training: what comes out in the end is bitwise what an unbroken run gives."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.ray

DDPM = [sys.executable, "-m", "workflows.cli"]
FLAGS = ["--train.keep-checkpoints=1", "--train.cpus-per-worker=0.5", "--train.precision=fp32"]
FEW, MANY = 120, 1000
"""steps"""
KILLS = 20
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def data(cluster, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("data") / "smoke")
    subprocess.run([*DDPM, "shard", "smoke", "--out", out, "--storage", out, "--address", cluster.address], check=True)
    return out


@pytest.fixture(scope="module")
def command(data, cluster):
    """`ddpm train smoke` for so many steps and workers, into a storage."""

    def words(storage, steps=FEW, num_workers=2, *more):
        every = [f"--train.steps={steps}", "--train.checkpoint-every=20", f"--train.num-workers={num_workers}"]
        flags = [flag.replace("--train.", "--") for flag in (*FLAGS, *every, *more)]
        return [
            *DDPM,
            "train",
            "smoke",
            *flags,
            "--data",
            data,
            "--storage",
            str(storage),
            "--address",
            cluster.address,
        ]

    return words


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """The weights that an undisturbed run of so many steps and workers ends with; each is run once."""
    known = {}

    def weights(steps=FEW, num_workers=2):
        if (steps, num_workers) not in known:
            storage = tmp_path_factory.mktemp("unbroken")
            subprocess.run(command(storage, steps, num_workers), check=True)
            known[steps, num_workers] = final_weights(storage, steps)
        return known[steps, num_workers]

    return weights


def final_weights(storage, steps=FEW):
    (file,) = Path(storage).glob(f"train/*/attempt-*/step-{steps:08d}/ema-0.safetensors")
    return load_file(file)


def check_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not weights[name].equal(expected[name])] == []


def wait_for(condition, process=None, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"it ended by itself: {process.stderr.read()}")
        time.sleep(0.02)
    raise TimeoutError


def attempts(storage):
    """The numbers of the attempts that have begun."""
    return {int(path.parent.name.rpartition("-")[2]) for path in Path(storage).glob("train/*/attempt-*/attempt.json")}


def workers():
    """The training workers of the session's cluster."""
    found = []
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if WORKER in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_a_killed_worker_costs_time_and_nothing_else(command, unbroken, tmp_path):
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000020/COMMIT")), process)
    (attempt,) = tmp_path.glob("train/*/attempt-1/attempt.json")
    os.kill(json.loads(attempt.read_text())["pid"], signal.SIGKILL)
    _, said = process.communicate()

    assert process.returncode == 0, said
    assert attempts(tmp_path) == {1, 2}
    check_same(final_weights(tmp_path), unbroken())


@pytest.mark.chaos
@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_that_are_killed_twenty_times_cost_time_and_nothing_else(
    num_workers, command, unbroken, tmp_path, record_property
):
    random_ = random.Random(num_workers)
    process = subprocess.Popen(
        command(tmp_path, MANY, num_workers, f"--train.max-failures={KILLS}"), stderr=subprocess.PIPE, text=True
    )
    steps = []
    for kill in range(1, KILLS + 1):
        wait_for(lambda number=kill: number in attempts(tmp_path), process)
        time.sleep(random_.uniform(0, 1.5))
        random_.choice(wait_for(workers, process)).kill()
        steps.append(max((int(path.parent.name[5:]) for path in tmp_path.glob("train/*/*/step-*/COMMIT")), default=0))
    _, said = process.communicate()
    record_property("checkpoints at the kills", steps)
    print(f"killed {KILLS} of {num_workers} workers with these checkpoints: {steps}")

    assert process.returncode == 0, said
    assert attempts(tmp_path) >= set(range(1, KILLS + 1))
    assert 0 < max(steps) < MANY
    check_same(final_weights(tmp_path, MANY), unbroken(MANY, num_workers))


@pytest.mark.chaos
def test_a_killed_driver_takes_its_ray_with_it_and_the_next_run_goes_on(data, unbroken, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smoke").symlink_to(data)
    flags = [*FLAGS, f"--train.steps={FEW}", "--train.checkpoint-every=20", "--train.num-workers=2"]
    command = [*DDPM, "run", "smoke", *flags, "--storage", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000040/COMMIT")))
    process.kill()
    process.wait()
    wait_for(lambda: not processes_with(str(tmp_path)), timeout_s=20)
    again = subprocess.run(command, capture_output=True, text=True, check=False)

    assert again.returncode == 0, again.stderr
    assert int(re.search(r"going on from the checkpoint at step (\d+) of", again.stderr)[1]) >= 40
    check_same(final_weights(tmp_path), unbroken())


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


@pytest.mark.chaos
@pytest.mark.parametrize("damage", ["cut", "uncommitted"])
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(damage, command, unbroken, tmp_path):
    words = command(tmp_path, FEW, 2, "--train.keep-checkpoints=3")
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000060/COMMIT")))
    process.kill()
    process.wait()
    wait_for(lambda: not workers(), timeout_s=60)
    newest = max(path.parent for path in tmp_path.glob("train/*/attempt-1/step-*/COMMIT"))
    if damage == "cut":
        weights = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    else:
        (newest / "COMMIT").unlink()
    again = subprocess.run(words, capture_output=True, text=True, check=False)

    assert again.returncode == 0, again.stderr
    assert (f"passing over {newest}" in again.stderr) == (damage == "cut")
    assert f"going on from the checkpoint at step {int(newest.name[5:]) - 20} of" in again.stderr
    check_same(final_weights(tmp_path), unbroken())
