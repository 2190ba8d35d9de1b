"""What `ddpm schedule …` does."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from ..cron import Cron
from ..progress import say
from ..scheduling.database import has_daemon, only_daemon, open_schedules
from ..scheduling.launcher import Launcher
from ..scheduling.scheduler import SystemClock, run_daemon
from ..scheduling.schedules import Record, Schedule
from .schedule_arguments import (
    ScheduleAddArgs,
    ScheduleHistoryArgs,
    ScheduleListArgs,
    SchedulePauseArgs,
    ScheduleRemoveArgs,
    ScheduleResumeArgs,
    ScheduleRunArgs,
    ScheduleRunNowArgs,
)
from .summary import columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from .schedule_arguments import ScheduleArgs, ScheduleNameArgs


def add(args: ScheduleAddArgs) -> dict[str, Any]:
    """`ddpm schedule add`. The command is one that is understood."""
    if args.command[:2] == ("schedule", "run"):
        raise ValueError("command must not be the daemon itself, got schedule run")
    schedule = Schedule(
        name=args.name,
        cron=args.cron,
        timezone=args.timezone,
        deadline_s=args.deadline_s,
        command=args.command,
        next_tick=next(Cron(args.cron, args.timezone).ticks(datetime.now(UTC))),
    )
    with open_schedules(args.where, args.schedules_uri, makes=True) as schedules:
        schedules.add(schedule, args.replace)
    return _said(schedule)


def remove(args: ScheduleNameArgs) -> dict[str, Any]:
    """`ddpm schedule remove`."""
    with open_schedules(args.where, args.schedules_uri) as schedules:
        schedules.remove(args.name)
    say(f"schedule: {args.name} is removed")
    return {"name": args.name}


def pause(args: ScheduleNameArgs) -> dict[str, Any]:
    """`ddpm schedule pause`. A run that was interrupted will not be run again, either."""
    with open_schedules(args.where, args.schedules_uri) as schedules:
        return _said(schedules.change(args.name, paused=True, requested=None))


def resume(args: ScheduleNameArgs) -> dict[str, Any]:
    """`ddpm schedule resume`. Of one that was not paused no tick is lost."""
    with open_schedules(args.where, args.schedules_uri) as schedules:
        schedule = schedules.get(args.name)
        if schedule.paused:
            next_tick = next(schedule.calendar.ticks(datetime.now(UTC)))
            schedule = schedules.change(args.name, paused=False, next_tick=next_tick)
    return _said(schedule)


def run_now(args: ScheduleNameArgs) -> dict[str, Any]:
    """`ddpm schedule run-now`."""
    with open_schedules(args.where, args.schedules_uri) as schedules:
        schedule = schedules.change(args.name, requested=datetime.now(UTC))
        at_work = has_daemon(schedules)
    when = "the daemon looks, which it does every second" if at_work else "there is a daemon: see ddpm schedule run"
    say(f"schedule: {args.name} runs as soon as {when}")
    return _plain(schedule)


def show_schedules(args: ScheduleListArgs) -> dict[str, Any]:
    """`ddpm schedule list`."""
    with open_schedules(args.where, args.schedules_uri) as schedules:
        found = schedules.all()
        last = {each.name: schedules.history(each.name, limit=1) for each in found}
    rows = [["NAME", "CRON", "TIMEZONE", "NEXT", "LAST", "COMMAND"]]
    for each in found:
        ended = _last(each, last[each.name])
        rows.append([each.name, each.cron, each.timezone, _next(each), ended, shlex.join(each.command)])
    _print(args, rows)
    return {"schedules": [_plain(each) for each in found]}


def show_history(args: ScheduleHistoryArgs) -> dict[str, Any]:
    """`ddpm schedule history`."""
    if args.limit < 1:
        raise ValueError(f"limit must be at least 1, got {args.limit}")
    with open_schedules(args.where, args.schedules_uri) as schedules:
        zones = {each.name: each.timezone for each in schedules.all()}
        records = schedules.history(args.name, limit=args.limit)
        if args.name and not records:
            schedules.get(args.name)
    rows = [["SCHEDULE", "TICK", "TICKS", "OUTCOME", "CODE", "TOOK", "LAST LINE", "LOG"]]
    for each in records:
        tick = _local(each.scheduled_for, zones.get(each.schedule, "UTC"))
        code = "" if each.exit_code is None else str(each.exit_code)
        what = [each.schedule, tick, str(each.num_ticks), each.outcome, code, _took(each)]
        rows.append([*what, each.last_line, each.log])
    _print(args, rows)
    return {"history": [_plain(each) for each in records]}


def run(args: ScheduleRunArgs) -> dict[str, Any]:
    """`ddpm schedule run`: does not return until it is interrupted."""
    if not args.logs and not args.where.folder.is_local:
        raise ValueError(f"logs must be given with a remote storage such as {args.where.storage}: a local folder")
    logs = Path(args.logs) if args.logs else Path(args.where.folder.path) / "schedules"
    with open_schedules(args.where, args.schedules_uri, makes=True) as schedules, only_daemon(schedules) as still_alone:
        say(f"schedule: at work on {schedules.engine.url.render_as_string()}, logs in {logs}; Ctrl-C ends it")
        run_daemon(schedules, SystemClock(), Launcher(logs), still_alone)


def _said(schedule: Schedule) -> dict[str, Any]:
    say(f"schedule: {schedule.name}, next tick {_next(schedule)}")
    return _plain(schedule)


def _plain(each: Schedule | Record) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(each).items()}


def _next(schedule: Schedule) -> str:
    return "paused" if schedule.paused else _local(schedule.next_tick, schedule.timezone)


def _last(schedule: Schedule, records: list[Record]) -> str:
    return "".join(f"{each.outcome} {_local(each.scheduled_for, schedule.timezone)}" for each in records)


def _took(record: Record) -> str:
    if record.started is None or record.ended is None:
        return ""
    return f"{(record.ended - record.started).total_seconds():.0f} s"


def _local(instant: datetime, timezone: str) -> str:
    return f"{instant.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M %Z}"


def _print(args: ScheduleArgs, rows: list[list[str]]) -> None:
    print("\n".join(columns(rows)), file=sys.stderr if args.json else sys.stdout)


ACTIONS: dict[type[ScheduleArgs], Callable[[Any], dict[str, Any]]] = {
    ScheduleAddArgs: add,
    ScheduleListArgs: show_schedules,
    ScheduleRemoveArgs: remove,
    SchedulePauseArgs: pause,
    ScheduleResumeArgs: resume,
    ScheduleRunNowArgs: run_now,
    ScheduleHistoryArgs: show_history,
    ScheduleRunArgs: run,
}
