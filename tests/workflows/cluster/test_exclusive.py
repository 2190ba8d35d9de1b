"""One driver at a time, on a real Ray."""

import subprocess
import sys

import pytest
from waiting import wait_for

pytestmark = pytest.mark.ray

HOLD = """
import sys, time, ray
from pathlib import Path
from workflows.cluster.exclusive import exclusive
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
with exclusive("sample-key"):
    Path(sys.argv[2]).touch()
    while Path(sys.argv[3]).exists():
        time.sleep(0.1)
"""


def test_a_second_driver_waits_for_the_first_and_comes_in_when_that_is_killed(cluster, tmp_path):
    goes_on = tmp_path / "goes on"
    goes_on.touch()

    def driver(name):
        command = [sys.executable, "-c", HOLD, cluster.address, tmp_path / name, goes_on]
        with (tmp_path / f"{name}.said").open("w") as said:
            return subprocess.Popen(command, stderr=said)

    first = driver("first")
    wait_for((tmp_path / "first").exists, first)
    second = driver("second")
    wait_for(lambda: "at work on sample-key" in (tmp_path / "second.said").read_text(), second)

    assert not (tmp_path / "second").exists()

    first.kill()
    first.wait()
    wait_for((tmp_path / "second").exists, second)
    goes_on.unlink()

    assert second.wait(timeout=60) == 0
