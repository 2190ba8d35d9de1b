"""The head of a Ray cluster is killed under `ddpm train`: it ends with a line, and goes on at the next head."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.chaos

STEPS = 160
DDPM = [sys.executable, "-m", "workflows.cli"]
FLAGS = ["--steps", str(STEPS), "--checkpoint-every", "20", "--keep-checkpoints", "1", "--preview-every", "0"]
LIMIT_S = 300
"""for a training, whatever happens to it"""


@pytest.fixture(scope="module")
def hosts(two_hosts):
    if why_not := two_hosts.why_not():
        pytest.skip(f"no network namespaces here: {why_not}")
    with two_hosts.TwoHosts(Path(f"/tmp/ddpm-head-{os.getpid()}")) as hosts:  # short: it is in the paths of sockets
        yield hosts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("data") / "smoke")
    subprocess.run([*DDPM, "shard", "smoke", "--out", out, "--storage", out], check=True)
    return out


def train_command(data, storage):
    return [*DDPM, "train", "smoke", *FLAGS, "--data", data, "--storage", str(storage)]


def weights(storage):
    (file,) = Path(storage).glob(f"train/*/attempt-*/step-{STEPS:08d}/ema-0.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    storage = tmp_path_factory.mktemp("unbroken")
    subprocess.run(train_command(data, storage), check=True)
    return weights(storage)


def start(hosts, data, storage):
    command = hosts.head.command(*train_command(data, storage), "--address", hosts.address)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=hosts.environment)


def wait_for(condition, process):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if condition():
            return
        if process.poll() is not None:
            raise RuntimeError(f"it ended by itself: {process.communicate()[1]}")
        time.sleep(0.05)
    raise TimeoutError


def kill(host, *names):
    """All processes of the host that have one of these names."""
    for pid in host.pids():
        try:
            if psutil.Process(pid).name() in names:
                os.kill(pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


@pytest.mark.parametrize("victims", [("gcs_server", "raylet"), ("gcs_server",), ("raylet",)], ids="+".join)
def test_a_killed_head_ends_the_command_with_a_line_and_the_next_head_goes_on(victims, hosts, data, unbroken, tmp_path):
    hosts.start_head(num_cpus=2)
    process = start(hosts, data, tmp_path)
    wait_for(lambda: list(tmp_path.glob("train/*/attempt-1/step-00000020/COMMIT")), process)
    kill(hosts.head, *victims)
    began = time.monotonic()
    _, said = process.communicate(timeout=LIMIT_S)
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s until it ended, saying {said.splitlines()[-1]}")
    hosts.head.kill()
    hosts.start_head(num_cpus=2)
    again = start(hosts, data, tmp_path)
    _, said_again = again.communicate(timeout=LIMIT_S)
    found = weights(tmp_path)
    hosts.head.kill()

    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert re.fullmatch(r"ddpm: error: the Ray cluster at [0-9.:]+ has gone .*goes on from here", said.splitlines()[-1])
    assert seconds < 120
    assert again.returncode == 0, said_again
    assert "going on from the checkpoint at step" in said_again
    assert all(found[name].equal(value) for name, value in unbroken.items())
