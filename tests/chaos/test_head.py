"""The head of a Ray cluster is killed under `ddpm train`: it ends with a line, and goes on at the next head."""

import os
import re
import signal
import subprocess
import time

import psutil
import pytest
from smoke_training import differing, final_weights, newest_step, shard_smoke, train_command
from waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.chaos

STEPS = 160
FLAGS = ["--checkpoint-every", "20", "--keep-checkpoints", "1", "--preview-every", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shard_smoke(tmp_path_factory.mktemp("data") / "smoke")


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    storage = tmp_path_factory.mktemp("unbroken")
    subprocess.run(train_command(data, storage, STEPS, *FLAGS), check=True)
    return final_weights(storage, STEPS)


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
    process = hosts.start_driver(train_command(data, tmp_path, STEPS, *FLAGS))
    wait_for(lambda: newest_step(tmp_path) >= 20, process)
    kill(hosts.head, *victims)
    began = time.monotonic()
    _, said = process.communicate(timeout=LIMIT_S)
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s until it ended, saying {said.splitlines()[-1]}")
    hosts.head.kill()
    hosts.start_head(num_cpus=2)
    again = hosts.start_driver(train_command(data, tmp_path, STEPS, *FLAGS))
    _, said_again = again.communicate(timeout=LIMIT_S)
    found = final_weights(tmp_path, STEPS)
    hosts.head.kill()

    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert re.fullmatch(r"ddpm: error: the Ray cluster at [0-9.:]+ has gone .*goes on from here", said.splitlines()[-1])
    assert seconds < 120
    assert again.returncode == 0, said_again
    assert "going on from the checkpoint at step" in said_again
    assert differing(found, unbroken) == []
