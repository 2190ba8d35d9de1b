"""`kill -9` in the middle of training: what comes out in the end is bitwise what an unbroken run gives."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from smoke_training import DDPM, differing, final_weights, newest_step, shard_smoke, train_command
from waiting import wait_for

pytestmark = pytest.mark.ray

FLAGS = ["--keep-checkpoints=1", "--cpus-per-worker=0.5", "--precision=fp32", "--checkpoint-every=20"]
FEW, MANY = 60, 2000
"""steps"""
KILLS = 20
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def data(cluster, tmp_path_factory):
    return shard_smoke(tmp_path_factory.mktemp("data") / "smoke", "--address", cluster.address)


@pytest.fixture(scope="module")
def command(data, cluster):
    """`ddpm train smoke` for so many steps and workers, into a storage."""

    def words(storage, steps=FEW, num_workers=2, *more):
        where = f"--address={cluster.address}"
        return train_command(data, storage, steps, *FLAGS, where, f"--num-workers={num_workers}", *more)

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
    assert differing(final_weights(tmp_path, FEW), unbroken()) == []


@pytest.mark.chaos
@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_that_are_killed_twenty_times_cost_time_and_nothing_else(num_workers, command, unbroken, tmp_path):
    random_ = random.Random(num_workers)
    words = command(tmp_path, MANY, num_workers, f"--max-failures={KILLS}")
    process, killed_at = subprocess.Popen(words, stderr=subprocess.PIPE, text=True), []
    for kill, step in enumerate(sorted(random_.sample(range(MANY - 200), KILLS)), start=1):
        wait_for(lambda number=kill: number in attempts(tmp_path), process)
        wait_for(lambda step=step: newest_step(tmp_path) >= step - 20, process)
        time.sleep(random_.uniform(0, 1))
        random_.choice(wait_for(workers, process)).kill()
        killed_at.append(newest_step(tmp_path))
    _, said = process.communicate()
    print(f"one of {num_workers} workers was killed {KILLS} times, with these checkpoints: {killed_at}")

    assert process.returncode == 0, said
    assert attempts(tmp_path) >= set(range(1, KILLS + 1))
    assert 0 <= killed_at[0] < killed_at[-1] < MANY
    assert differing(final_weights(tmp_path, MANY), unbroken(MANY, num_workers)) == []


@pytest.mark.chaos
def test_a_killed_driver_takes_its_ray_with_it_and_the_next_run_goes_on(data, unbroken, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smoke").symlink_to(data)
    flags = [flag.replace("--", "--train.") for flag in (*FLAGS, f"--steps={FEW}", "--num-workers=2")]
    command = [*DDPM, "run", "smoke", *flags, "--storage", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000020/COMMIT")))
    process.kill()
    process.wait()
    wait_for(lambda: not processes_with(str(tmp_path)), limit_s=20)
    again = subprocess.run(command, capture_output=True, text=True, check=False)

    assert again.returncode == 0, again.stderr
    assert int(re.search(r"going on from the checkpoint at step (\d+) of", again.stderr)[1]) >= 20
    assert differing(final_weights(tmp_path, FEW), unbroken()) == []


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
    words = command(tmp_path, FEW, 2, "--keep-checkpoints=3")
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000040/COMMIT")))
    process.kill()
    process.wait()
    wait_for(lambda: not workers(), limit_s=60)
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
    assert differing(final_weights(tmp_path, FEW), unbroken()) == []
