"""A Ray of our own on this machine, with the Jobs API, for as long as this process lives.

`ray.init` would do, but that its agent insists on port 52365: no job could be submitted while another Ray, or the
dying one of a killed run, still has it. Ray's own way down takes half a minute, in which a killed run would train on.
So all of Ray is one process group, and a guard kills the group when the pipe that we hold open closes: when we end,
by whatever signal.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO

START_TIMEOUT_S = 60.0
LOGS = Path("/tmp")  # noqa: S108 - where Ray's own are; a longer path would be too long for its sockets
PREFIX = "ddpm-ray-"
KEEP_LOGS_S = 7 * 24 * 3600.0
GUARD = "import os, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), 9)"


@dataclass(frozen=True)
class LocalRay:
    """Where a Ray listens."""

    dashboard: str
    """URL of the dashboard, which takes jobs"""
    address: str
    """host:port for `ray.init`"""


@cache
def start_local_ray() -> LocalRay:
    """Start Ray, once. It ends with this process, however that ends; its logs stay in /tmp/ddpm-ray-* for a week.

    It has a dashboard even where nobody submits jobs: without its state API, Ray Train takes 12 s longer to end.

    Raises RuntimeError, with the end of Ray's own output, if it does not come up.
    """
    sweep_logs()
    gcs, dashboard, agent, client = free_ports(4)
    python = Path(sys.executable)
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # jobs say "python" and mean this one
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
               "--include-dashboard=true", "--dashboard-host=127.0.0.1",
               f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
               f"--ray-client-server-port={client}"]  # fmt: skip
    # Ray notes the cluster that was started last in its temporary folder, and jobs, ours too, believe the note.
    command.append(f"--temp-dir={mkdtemp(prefix=PREFIX, dir=LOGS)}")
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ray's own actors ask the state API, and would otherwise look for it by the note.
            env={**os.environ, "PATH": path, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
            start_new_session=True,  # a process group of its own, which Ctrl-C does not reach
        )
        guard = subprocess.Popen(
            [python, "-I", "-S", "-c", GUARD, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        atexit.register(_stop, guard, process)
        _await(process, dashboard, log)
    return LocalRay(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}")


def sweep_logs() -> None:
    """Take away what past Rays of ours left: all in which nothing has been written for a week, as a live one does."""
    for folder in LOGS.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # a live one's files come and go
            newest = max(each.lstat().st_mtime for each in [folder, *folder.rglob("*")])
            if time.time() - newest > KEEP_LOGS_S:
                shutil.rmtree(folder, ignore_errors=True)  # it may be another user's


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens at present, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await(process: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError("Ray did not start on this machine; the end of its output:\n" + log.read()[-2000:])


def _stop(guard: subprocess.Popen[bytes], process: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()
    process.wait()
