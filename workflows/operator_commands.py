"""The commands that run a cluster's work from outside; each imports its job only when it is called."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from .command import Command
from .operator_arguments import JobLogsArgs, JobsListArgs, JobStatusArgs, JobStopArgs, SubmitArgs


def submit(args: SubmitArgs) -> dict[str, Any]:
    """`ddpm submit`."""
    from . import submit as stage
    from .jobs import open_client

    if args.dry_run:
        request = stage.request_of(open_client(args.where.address), args.command, args.python, args.credentials)
        asked = {"submission_id": request.key, "entrypoint": request.entrypoint, "runtime_env": request.runtime_env}
        print(json.dumps(asked, indent=2), file=sys.stderr if args.json else sys.stdout)
        return asked
    return asdict(stage.submit(args.where.address, args.command, args.python, args.credentials, args.follow))


def jobs_list(args: JobsListArgs) -> dict[str, Any]:
    """`ddpm jobs list`."""
    from .submit import list_jobs
    from .summary import show_jobs

    return show_jobs(list_jobs(args.where.address))


def jobs_status(args: JobStatusArgs) -> dict[str, Any]:
    """`ddpm jobs status`."""
    from .submit import status_of
    from .summary import show_job

    return show_job(status_of(args.where.address, args.job))


def jobs_logs(args: JobLogsArgs) -> dict[str, Any]:
    """`ddpm jobs logs`."""
    from .submit import log_of

    log = log_of(args.where.address, args.job, args.follow)
    print(log, end="", file=sys.stderr if args.json else sys.stdout)
    return {"job": args.job}


def jobs_stop(args: JobStopArgs) -> dict[str, Any]:
    """`ddpm jobs stop`."""
    from .submit import stop_job
    from .summary import show_job

    return show_job(stop_job(args.where.address, args.job))


OPERATOR_COMMANDS = {
    "submit": Command(SubmitArgs, None, submit),
    "jobs list": Command(JobsListArgs, None, jobs_list),
    "jobs status": Command(JobStatusArgs, None, jobs_status),
    "jobs logs": Command(JobLogsArgs, None, jobs_logs),
    "jobs stop": Command(JobStopArgs, None, jobs_stop),
}
