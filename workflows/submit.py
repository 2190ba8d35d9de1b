"""`ddpm submit` and `ddpm jobs`: any command of ours as a job of a cluster, and what has become of it."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.job_submission import JobStatus

from diffusion.files import Folder

from .cluster.client import Refused, folder_on, open_client
from .cluster.credentials import check_no_password
from .cluster.job_log import result_in
from .cluster.jobs import JobRequest, attach_or_submit, follow, id_of, remote_request, stop, which
from .progress import say
from .words import value_of, with_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray.job_submission import JobDetails

    from .cluster.client import Client

NOT_AS_JOBS = ("submit", "jobs", "schedule", "ui")
SHOWN_JOBS = 5


@dataclass(frozen=True)
class Sent:
    """What became of a submission."""

    job: str
    attached: bool
    """whether the same was already running"""
    status: str


def submit(
    address: str, command: Sequence[str], python: str = "", credentials: str = "", follows: bool = False
) -> Sent:
    """Send a command to the cluster at `address`, or attach to the same one if that runs; with `follows`, to its end.

    Raises ValueError for what cannot work there, JobFailed if it was followed and failed.
    """
    client = open_client(address)
    request = request_of(client, command, python, credentials)
    job_id, attached = attach_or_submit(client, request)
    say(which(job_id, attached))
    if not follows:
        say(f"to see more of it: ddpm jobs logs --follow {job_id} --address {address}")
        return Sent(job_id, attached, client.get_job_status(job_id).value)
    try:
        print(result_in(follow(client, job_id)), file=sys.stderr)
    except KeyboardInterrupt:
        say(f"job {job_id} goes on; ddpm jobs stop {job_id} would end it")
        raise
    return Sent(job_id, attached, JobStatus.SUCCEEDED.value)


def request_of(client: Client, command: Sequence[str], python: str = "", credentials: str = "") -> JobRequest:
    """What is sent for a command. On a cluster of this very machine it works in our folder; elsewhere only with URIs.

    Raises ValueError for a command that is none for a job, that shows a password, or that names what is only here.
    """
    check_sendable(command)
    if value_of(command, "--address"):
        raise ValueError("address must be given before --: the job finds the cluster that it runs on")
    if folder := folder_on(client):
        return remote_request(key_of(command, folder), tuple(command), python, folder, credentials)
    argv, files = with_uris(command)
    return remote_request(key_of(argv), argv, python, "", credentials, files)


def described(client: Client, request: JobRequest) -> dict[str, Any]:
    """A request as it would be sent: the job's name, or that of the same one that runs, and what would be written."""
    job_id, attached = id_of(client, request)
    return {
        "submission_id": job_id,
        "attached": attached,
        "entrypoint": request.entrypoint,
        "runtime_env": request.runtime_env,
        "files": list(request.files),
    }


def check_sendable(command: Sequence[str]) -> None:
    """Raises ValueError for a command that is none for a job, or that shows a password."""
    if command[0] in NOT_AS_JOBS:
        raise ValueError(f"command must be one that a job can do, got {command[0]}: call it here")
    check_no_password(command)


def key_of(command: Sequence[str], folder: str = "") -> str:
    """What a job is called by: the same words are the same job. In a folder of ours, what they mean depends on that.

    A config elsewhere is known by what is in it: its name in the storage says so.
    """
    parts = list(command)
    if folder:
        file = value_of(command, "--config")
        parts += [folder, _sha256(Path(file).read_bytes()) if file and "://" not in file else ""]
    return f"{command[0]}-{_sha256(json.dumps(parts).encode())}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def with_uris(command: Sequence[str]) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """The command for another machine, and what is to be written for it, by URI: a --config file goes into the storage.

    Raises ValueError if the storage is not named, or is a folder relative to where we are.
    """
    storage = value_of(command, "--storage")
    if "://" not in storage and not storage.startswith("/"):
        raise ValueError(
            f"storage must be one that the cluster reaches, such as s3://…, got {storage or 'none'}: "
            f"give --storage after the --"
        )
    file = value_of(command, "--config")
    if not file or "://" in file:
        return tuple(command), {}
    text = Path(file).read_bytes()
    name = f"submitted-{_sha256(text)}{Path(file).suffix}"
    uri = (Folder(storage) / "configs" / name).uri
    return with_value(command, "--config", uri), {uri: text}


def list_jobs(address: str) -> list[dict[str, Any]]:
    """Our jobs on a cluster, the newest first."""
    jobs = [job for job in _submitted(open_client(address)) if "workflows.cli" in job.entrypoint]
    return [_plain(job) for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)]


def status_of(address: str, job_id: str) -> dict[str, Any]:
    """What has become of a job."""
    client = open_client(address)
    return _plain(_known(client, job_id))


def log_of(address: str, job_id: str, follows: bool) -> str:
    """A job's log as it is; with `follows`, its progress is drawn until it is over, and its result is given.

    Raises JobFailed if it was followed and failed.
    """
    client = open_client(address)
    _known(client, job_id)
    if follows:
        return result_in(follow(client, job_id))
    log: str = client.get_job_logs(job_id)
    return log


def stop_job(address: str, job_id: str) -> dict[str, Any]:
    """End a job; one that is over stays what it is."""
    client = open_client(address)
    _known(client, job_id)
    stop(client, job_id)
    return _plain(client.get_job_info(job_id))


def _known(client: Client, job_id: str) -> JobDetails:
    try:
        return client.get_job_info(job_id)
    except Refused as err:
        if err.status != HTTPStatus.NOT_FOUND:
            raise
    newest = sorted(_submitted(client), key=lambda job: job.start_time or 0)[-SHOWN_JOBS:]
    known = ", ".join(job.submission_id for job in reversed(newest)) or "none"
    raise ValueError(f"there is no job {job_id}; the newest are: {known}")


def _submitted(client: Client) -> list[JobDetails]:
    """All but drivers that were started beside the Jobs API, which Ray lists, too, without an id."""
    return [job for job in client.list_jobs() if job.submission_id]


def _plain(job: JobDetails) -> dict[str, Any]:
    started, ended = job.start_time, job.end_time
    return {
        "job": job.submission_id,
        "status": job.status.value,
        "command": job.entrypoint.partition("workflows.cli ")[2],
        "started": started and started / 1000,
        "seconds": started and ended and (ended - started) / 1000,
        "message": job.message,
    }
