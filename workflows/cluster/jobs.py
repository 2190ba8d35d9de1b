"""Our commands as Ray jobs: submitted under a name of their own, followed, and judged by their status."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from ray.job_submission import JobStatus

import diffusion
import workflows
from diffusion.files import Folder
from diffusion.patience import patiently

from ..progress import AS_LINES, say
from ..storage import JobFailed
from ..words import value_of
from .client import Refused
from .credentials import CREDENTIALS_FILE
from .job_log import Shown, last_word, show_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ray.job_submission import JobDetails

    from ..storage import Environment
    from .client import Client

for name in (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
):
    logging.getLogger(name).setLevel(logging.WARNING)  # else a line for every socket closed and package sent
R = TypeVar("R")
POLL_S = 0.25
AWAY_S = (1, 2, 4, 8, *[15] * 40)
"""waits between questions to a cluster that does not answer: ten minutes, in which a head may come back"""
PYTHON = "DDPM_JOB_PYTHON"
"""environment variable of a job: the interpreter that it was asked to run with, for jobs that it submits itself"""


@dataclass(frozen=True)
class JobRequest:
    """A command of ours, as a cluster is asked to run it."""

    key: str
    """its job is called KEY-a1, or KEY-aN after N-1 that are over"""
    argv: tuple[str, ...]
    """`ddpm` and these words"""
    python: str = "python"
    """the interpreter there; `python` is whatever its head's PATH says"""
    packages: tuple[str, ...] = ()
    """folders that are sent along, as the interpreter there need not have our project"""
    folder: str = ""
    """in which it runs; where the cluster was started, if nothing is said"""
    credentials: str = ""
    """path of a file there, of lines NAME=VALUE (see `credentials`)"""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """what it reads and is only here, by the URI that it reads it from: written there before it is submitted"""

    @property
    def entrypoint(self) -> str:
        """The shell's line."""
        command = shlex.join([self.python, "-m", "workflows.cli", *self.argv])
        return f"cd {shlex.quote(self.folder)} && exec {command}" if self.folder else command

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What Ray is to give the job; anybody who may list jobs sees it."""
        variables = {AS_LINES: "1", "PYTHONUNBUFFERED": "1"}
        if self.packages:
            variables[PYTHON] = self.python
        if self.credentials:
            variables[CREDENTIALS_FILE] = self.credentials
        return {"env_vars": variables, **({"py_modules": list(self.packages)} if self.packages else {})}


def local_request(key: str, argv: tuple[str, ...]) -> JobRequest:
    """For a Ray of our own: our own interpreter runs it."""
    return JobRequest(key, argv, sys.executable)


def remote_request(
    key: str,
    argv: tuple[str, ...],
    python: str = "",
    folder: str = "",
    credentials: str = "",
    files: Mapping[str, bytes] | None = None,
) -> JobRequest:
    """For a cluster: its interpreter runs it, with our two packages, which are sent along.

    A job that submits another one does it as it was submitted.
    """
    packages = (diffusion.__path__[0], workflows.__path__[0])
    python = python or os.environ.get(PYTHON, "python")
    credentials = credentials or os.environ.get(CREDENTIALS_FILE, "")
    return JobRequest(key, argv, python, packages, folder, credentials, files or {})


def cluster_address(environment: Environment) -> str:
    """Of the cluster that a command of several stages is for: the given one, or the one whose job it is; "": none."""
    return environment.address or os.environ.get("RAY_ADDRESS", "")


def own_id() -> str:
    """Of the job that this process is; "" if it is none. Ray tells it to the job in this way only."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found: str = config.get("metadata", {}).get("job_submission_id", "")
    return found


def run_job(client: Client, request: JobRequest) -> None:
    """Run a command as a job and wait for it, drawing its progress. A live one of its key is attached to.

    Raises JobFailed with the job's own last word if it does not succeed, or if the cluster is away for ten minutes.
    """
    job_id, attached = attach_or_submit(client, request)
    say(which(job_id, attached))
    try:
        follow(client, job_id, AWAY_S if request.packages else ())  # our own Ray does not come back
    except KeyboardInterrupt:
        if not request.packages:  # that Ray ends with us, and the job with it: this way it can say so in MLflow
            with suppress(RuntimeError, OSError):
                stop(client, job_id)
        raise


def attach_or_submit(client: Client, request: JobRequest) -> tuple[str, bool]:
    """The job of a request, and whether it was there: KEY-a1, or the live attempt, or the one after the last."""
    while True:
        job_id, is_there = id_of(client, request)
        if is_there:
            return job_id, True
        for uri, data in request.files.items():
            Folder(uri).parent.write(Folder(uri).name, data)
        try:
            client.submit_job(submission_id=job_id, entrypoint=request.entrypoint, runtime_env=request.runtime_env)
        except Refused as err:
            if "already exists" not in err.text:  # somebody else submitted the same between the two questions
                raise
        else:
            return job_id, False


def id_of(client: Client, request: JobRequest) -> tuple[str, bool]:
    """What the job of a request is called, as `attach_or_submit` says, and whether it is there.

    One that works in another storage makes nothing that is found in this one: it is an attempt of somebody else's.
    """
    attempts = attempts_of(client, request.key)
    storage = value_of(request.argv, "--storage")
    live = live_in(
        {name: job for name, job in attempts.items() if value_of(shlex.split(job.entrypoint), "--storage") == storage}
    )
    return live or f"{request.key}-a{len(attempts) + 1}", bool(live)


def which(job_id: str, attached: bool) -> str:
    """For people: the job that a request came to."""
    return f"attached to job {job_id}, which is already running" if attached else f"Ray job {job_id}"


def follow(client: Client, job_id: str, away_s: Sequence[float] = AWAY_S) -> str:
    """Draw a job's progress until it is over; its whole log, or "" if that is not to be had.

    Raises JobFailed with the job's own last word if it does not succeed, or if the cluster is away for longer than all
    of `away_s`, or comes back without the job.
    """
    shown = Shown()
    threading.Thread(target=show_log, args=(client, job_id, shown), name="job-log", daemon=True).start()
    try:
        status = _wait(client, job_id, away_s)
        log = _log_of(client, job_id, away_s[:3])
        shown.up_to(log)
    finally:
        shown.close()
    if status is not JobStatus.SUCCEEDED:
        raise JobFailed(last_word(log, job_id, status))
    return log


def stop(client: Client, job_id: str) -> JobStatus:
    """SIGTERM to a job, which Ray kills after 3 s; what it came to."""
    client.stop_job(job_id)
    return _wait(client, job_id)


def attempts_of(client: Client, key: str) -> dict[str, JobDetails]:
    """The jobs of a key, by id: KEY-a1, KEY-a2, …"""
    known = {job.submission_id: job for job in client.list_jobs()}
    names = takewhile(known.__contains__, (f"{key}-a{number}" for number in count(1)))
    return {name: known[name] for name in names}


def live_in(attempts: dict[str, JobDetails]) -> str:
    """The id of the one that is not over; "" if there is none."""
    return next((name for name, job in attempts.items() if not job.status.is_terminal()), "")


def _wait(client: Client, job_id: str, away_s: Sequence[float] = AWAY_S) -> JobStatus:
    while not (status := _asked(lambda: client.get_job_status(job_id), job_id, away_s)).is_terminal():
        time.sleep(POLL_S)
    return status


def _log_of(client: Client, job_id: str, away_s: Sequence[float]) -> str:
    """Of a job that is over; what became of it is known without."""
    try:
        log: str = _asked(lambda: client.get_job_logs(job_id), job_id, away_s)
    except JobFailed:
        return ""
    return log


def _asked(ask: Callable[[], R], job_id: str, away_s: Sequence[float]) -> R:
    """A cluster's answer; a connection that is lost says nothing about the job."""

    def once() -> R:
        try:
            return ask()
        except Refused as err:
            if err.status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # a proxy before a head that is away
                raise OSError(str(err)) from None
            if err.status == HTTPStatus.NOT_FOUND:  # it is said of a log, too, whose node has gone
                raise JobFailed(
                    f"the Ray cluster does not know job {job_id} any more: its head was started anew; the same command "
                    f"goes on from what is there"
                ) from None
            raise

    try:
        return patiently(once, away_s)
    except OSError as err:
        raise JobFailed(
            f"the cluster does not answer any more; job {job_id} may still run (ddpm jobs status {job_id}): {err}"
        ) from None
