"""Our commands as Ray jobs: submitted under a name of their own, followed, and judged by their status."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientError
from ray.job_submission import JobStatus, JobSubmissionClient

import diffusion

from .progress import AS_LINES, View, say
from .storage import JobFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

for name in (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
):
    logging.getLogger(name).setLevel(logging.WARNING)  # else a line for every socket closed and package sent
POLL_S = 0.25
ERROR = "ddpm: error: "
"""how a command's last line on stderr begins when it fails"""


def open_client(address: str) -> JobSubmissionClient:
    """A client of the cluster's Jobs API. Raises ValueError if nobody answers there."""
    # Ray would prefer these to the address that it is given.
    aside = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as err:
        raise ValueError(f"no Ray cluster answers at address {address}: {str(err).splitlines()[0]}") from None
    finally:
        os.environ.update(aside)


def run_job(client: JobSubmissionClient, key: str, argv: Sequence[str], local: bool) -> None:
    """Run `ddpm ARGV` as the job of this key and wait for it, drawing its progress. A live one is attached to.

    On a `local` Ray our own interpreter runs it; else the cluster's, with our two packages sent along.
    Raises JobFailed with the job's own last word if it does not succeed.
    """
    job_id = _attach_or_submit(client, key, argv, local)
    say(f"Ray job {job_id}")
    shown = _Shown()
    threading.Thread(target=_follow, args=(client, job_id, shown), name="job-log", daemon=True).start()
    try:
        status = _wait(client, job_id)
        log: str = client.get_job_logs(job_id)
        shown.up_to(log)
    except KeyboardInterrupt:
        if local:  # that Ray ends with us, and the job with it: this way it can say so in MLflow
            _stop(client, job_id)
        raise
    finally:
        shown.close()
    if status is not JobStatus.SUCCEEDED:
        raise JobFailed(_last_word(log, job_id, status))


def _attach_or_submit(client: JobSubmissionClient, key: str, argv: Sequence[str], local: bool) -> str:
    """KEY-a1, or the live attempt, or the one after the last."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    attempt = 1
    while (status := known.get(f"{key}-a{attempt}")) is not None:
        if not status.is_terminal():
            say(f"attached to job {key}-a{attempt}, which is already running")
            return f"{key}-a{attempt}"
        attempt += 1
    python = sys.executable if local else "python"
    packages = [str(Path(module).parent) for module in (str(diffusion.__file__), __file__)]
    runtime_env = {"env_vars": {AS_LINES: "1", "PYTHONUNBUFFERED": "1"}}
    job_id: str = client.submit_job(
        submission_id=f"{key}-a{attempt}",
        entrypoint=shlex.join([python, "-m", "workflows.cli", *argv]),
        runtime_env=runtime_env if local else {**runtime_env, "py_modules": packages},
    )
    return job_id


def _wait(client: JobSubmissionClient, job_id: str) -> JobStatus:
    while not (status := client.get_job_status(job_id)).is_terminal():
        time.sleep(POLL_S)
    return status


def _stop(client: JobSubmissionClient, job_id: str) -> None:
    """SIGTERM to a job; Ray kills it after 3 s."""
    with suppress(RuntimeError, OSError):
        client.stop_job(job_id)
        _wait(client, job_id)


class _Shown:
    """What the user has seen of a job's log: its progress as bars, and what it says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view = View()
        self._length = 0
        self.over = False

    def close(self) -> None:
        """Show no more, and leave the cursor below the bars."""
        with self._lock:
            self.over = True
            self._view.close()

    def up_to(self, log: str) -> None:
        """Show the whole lines of a log, given from its beginning, that were not shown yet."""
        with self._lock:
            if self.over:
                return
            end = log.rfind("\n") + 1
            for line in log[self._length : end].splitlines():
                if not self._view.feed(line) and line.startswith("ddpm: ") and not line.startswith(ERROR):
                    say(line.removeprefix("ddpm: "))
            self._length = max(self._length, end)


def _follow(client: JobSubmissionClient, job_id: str, shown: _Shown) -> None:
    """Show the log as it comes. That the stream ends says nothing about the job: it is read anew until that is over."""

    async def read() -> None:
        log = ""
        async for chunk in client.tail_job_logs(job_id):
            log += chunk
            shown.up_to(log)

    while not shown.over:
        with suppress(RuntimeError, OSError, ClientError):
            asyncio.run(read())
        time.sleep(1)


def _last_word(log: str, job_id: str, status: JobStatus) -> str:
    """What the job said of its failure; the end of its log if it could not say anything."""
    errors = [line.removeprefix(ERROR) for line in log.splitlines() if line.startswith(ERROR)]
    if errors:
        return errors[-1]
    return f"job {job_id} ended as {status.value}; the end of its log:\n" + "\n".join(log.splitlines()[-20:])
