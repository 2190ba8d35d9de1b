"""The commands that run a cluster's work from outside; each imports its job only when it is called."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .command import Command
from .operator_arguments import (
    ChampionsArgs,
    JobLogsArgs,
    JobsListArgs,
    JobStatusArgs,
    JobStopArgs,
    PromoteArgs,
    RetrainArgs,
    RollbackArgs,
    SubmitArgs,
)
from .schedule_arguments import (
    ScheduleAddArgs,
    ScheduleArgs,
    ScheduleEmitArgs,
    ScheduleHistoryArgs,
    ScheduleListArgs,
    SchedulePauseArgs,
    ScheduleRemoveArgs,
    ScheduleResumeArgs,
    ScheduleRunArgs,
    ScheduleRunNowArgs,
)

if TYPE_CHECKING:
    from ..tracking import Tracker


def submit(args: SubmitArgs) -> dict[str, Any]:
    """`ddpm submit`."""
    from .. import submit as stage
    from ..cluster.client import open_client

    if args.dry_run:
        client = open_client(args.where.address)
        asked = stage.described(client, stage.request_of(client, args.command, args.python, args.credentials))
        print(json.dumps(asked, indent=2), file=sys.stderr if args.json else sys.stdout)
        return asked
    return asdict(stage.submit(args.where.address, args.command, args.python, args.credentials, args.follow))


def jobs_list(args: JobsListArgs) -> dict[str, Any]:
    """`ddpm jobs list`."""
    from ..submit import list_jobs
    from .summary import show_jobs

    return show_jobs(list_jobs(args.where.address))


def jobs_status(args: JobStatusArgs) -> dict[str, Any]:
    """`ddpm jobs status`."""
    from ..submit import status_of
    from .summary import show_job

    return show_job(status_of(args.where.address, args.job))


def jobs_logs(args: JobLogsArgs) -> dict[str, Any]:
    """`ddpm jobs logs`."""
    from ..submit import log_of

    log = log_of(args.where.address, args.job, args.follow)
    print(log, end="", file=sys.stderr if args.json else sys.stdout)
    return {"job": args.job}


def jobs_stop(args: JobStopArgs) -> dict[str, Any]:
    """`ddpm jobs stop`."""
    from ..submit import stop_job
    from .summary import show_job

    return show_job(stop_job(args.where.address, args.job))


def retrain(args: RetrainArgs) -> dict[str, Any]:
    """`ddpm retrain`."""
    from .. import retrain as stage
    from .saved_config import saved_config, with_named
    from .summary import show_retrained

    config = args.config
    if not args.chosen:
        config = with_named(saved_config(args.where, config.name), config, args.named)
    return show_retrained(stage.run(config, args.where))


def promote(args: PromoteArgs) -> dict[str, Any]:
    """`ddpm promote`."""
    from ..champions import promotion
    from ..tracking import Tracker, model_version

    if not {"/", "@"} & set(args.model.removeprefix("models:/")):
        raise ValueError(f"model must be NAME/VERSION or NAME@alias, got {args.model!r}")
    tracker = Tracker(args.where)
    model = model_version(tracker, args.model)
    promotion.promote(tracker, model, args.why)
    return _champions(tracker, model.name)


def rollback(args: RollbackArgs) -> dict[str, Any]:
    """`ddpm rollback`."""
    from ..champions import promotion
    from ..tracking import Tracker

    tracker = Tracker(args.where)
    promotion.rollback(tracker, args.name, args.why)
    return _champions(tracker, args.name)


def champions(args: ChampionsArgs) -> dict[str, Any]:
    """`ddpm champions`."""
    from ..tracking import Tracker

    return _champions(Tracker(args.where), args.name)


def schedule(args: ScheduleArgs) -> dict[str, Any]:
    """`ddpm schedule …`."""
    from .schedules import ACTIONS

    return ACTIONS[type(args)](args)


def schedule_emit(args: ScheduleEmitArgs) -> dict[str, Any]:
    """`ddpm schedule emit`."""
    from ..manifests import to_yaml
    from .emit import emitted

    manifests = emitted(args)
    print(to_yaml(manifests), end="", file=sys.stderr if args.json else sys.stdout)
    return {"manifests": manifests}


OPERATOR_COMMANDS = {
    "retrain": Command(RetrainArgs, lambda c: RetrainArgs(config=c), retrain),
    "promote": Command(PromoteArgs, None, promote),
    "rollback": Command(RollbackArgs, None, rollback),
    "champions": Command(ChampionsArgs, None, champions),
    "submit": Command(SubmitArgs, None, submit),
    "jobs list": Command(JobsListArgs, None, jobs_list),
    "jobs status": Command(JobStatusArgs, None, jobs_status),
    "jobs logs": Command(JobLogsArgs, None, jobs_logs),
    "jobs stop": Command(JobStopArgs, None, jobs_stop),
    "schedule add": Command(ScheduleAddArgs, None, schedule),
    "schedule list": Command(ScheduleListArgs, None, schedule),
    "schedule remove": Command(ScheduleRemoveArgs, None, schedule),
    "schedule pause": Command(SchedulePauseArgs, None, schedule),
    "schedule resume": Command(ScheduleResumeArgs, None, schedule),
    "schedule run-now": Command(ScheduleRunNowArgs, None, schedule),
    "schedule history": Command(ScheduleHistoryArgs, None, schedule),
    "schedule run": Command(ScheduleRunArgs, None, schedule),
    "schedule emit": Command(ScheduleEmitArgs, None, schedule_emit),
}


def _champions(tracker: Tracker, name: str) -> dict[str, Any]:
    from ..champions.promotion import history
    from ..tracking import champion_of
    from .summary import show_champions

    return show_champions(name, history(tracker, name), champion_of(tracker, name))
