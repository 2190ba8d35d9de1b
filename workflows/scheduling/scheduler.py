"""The daemon that runs commands at the ticks of their schedules.

A tick is attended to in two steps. In one transaction it is noted what becomes of it, and the schedule moves on; then
the command is started. So a daemon that is killed leaves no tick behind: what it noted and did not start, or what was
at work and ended with it, the next daemon finds as running without a process, and runs again.
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn, Protocol

from ..progress import say
from .database import AWAY, reason
from .schedules import DONE, FAILED, INTERRUPTED, MISSED, RUNNING, SKIPPED, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .launcher import Launcher, Run
    from .schedules import Schedule, Schedules

POLL_S = 1.0
"""how soon what was added, asked for or has ended is noticed"""
STOP_S = 4.0
"""for commands to end, before a daemon that was interrupted leaves without them"""
IDLE = timedelta(days=1)


class Clock(Protocol):
    """What time it is, and letting it pass."""

    def now(self) -> datetime:
        """In UTC."""

    def wait(self, until: datetime) -> None:
        """Until then, or until there may be something to look at."""


class SystemClock:
    """This machine's."""

    def now(self) -> datetime:
        """In UTC."""
        return datetime.now(UTC)

    def wait(self, until: datetime) -> None:
        """Until then, a second at most."""
        time.sleep(min(max((until - self.now()).total_seconds(), POLL_S / 10), POLL_S))


def attended(schedule: Schedule, now: datetime, is_busy: bool) -> tuple[datetime, list[Record]]:
    """A schedule's next tick, and what becomes of those that are due.

    Those past the deadline are missed. The others are one: run, or skipped if the last run is still at work.
    """
    due = [] if schedule.requested is None else [schedule.requested]
    next_tick, later = schedule.next_tick, schedule.calendar.ticks(schedule.next_tick)
    while not schedule.paused and next_tick <= now:
        due.append(next_tick)
        next_tick = next(later)
    oldest = now - timedelta(seconds=schedule.deadline_s)
    missed = sorted(tick for tick in due if tick < oldest)
    timely = sorted(tick for tick in due if tick >= oldest)
    outcomes = [(missed, MISSED), (timely, SKIPPED if is_busy else RUNNING)]
    return next_tick, [_record(schedule, ticks, outcome, now) for ticks, outcome in outcomes if ticks]


def _record(schedule: Schedule, ticks: Sequence[datetime], outcome: str, now: datetime) -> Record:
    return Record(
        schedule=schedule.name,
        scheduled_for=ticks[-1],
        since=ticks[0],
        num_ticks=len(ticks),
        outcome=outcome,
        started=now if outcome == RUNNING else None,
        ended=None if outcome == RUNNING else now,
    )


def run_daemon(
    schedules: Schedules, clock: Clock, launcher: Launcher, still_alone: Callable[[], None] = lambda: None
) -> NoReturn:
    """Run what is due, until interrupted; then what runs is told to end, and will be run again.

    While the database is away nothing is started. `still_alone` raises JobFailed if there is another daemon.
    """
    daemon = _Daemon(schedules, clock, launcher)
    was_away = True  # as after an outage, nobody knows yet what runs
    try:
        while True:
            try:
                still_alone()
                until = daemon.turn(anew=was_away)
                was_away = False
            except AWAY as err:
                if not was_away:
                    say(f"schedule: nothing is started until the database is back: {reason(err)}")
                was_away, until = True, clock.now() + timedelta(seconds=POLL_S)
            clock.wait(until)
    finally:
        daemon.stop()


class _Daemon:
    """What runs, and what to do about it now."""

    def __init__(self, schedules: Schedules, clock: Clock, launcher: Launcher) -> None:
        self._schedules, self._clock, self._launcher = schedules, clock, launcher
        self._running: dict[int, tuple[Record, Run]] = {}

    def turn(self, anew: bool) -> datetime:
        """Note what has ended and start what is due; the next time that something is."""
        if anew:
            self._adopt()
        self._collect()
        now = self._clock.now()
        upcoming = [self._attend(each, now) if each.is_due(now) else each.next_tick for each in self._schedules.all()]
        return min((tick for tick in upcoming if tick > now), default=now + IDLE)

    def _adopt(self) -> None:
        """What is noted as running, and not by us: left by another daemon, or noted just as the database went away."""
        for record in self._schedules.history(outcome=RUNNING):
            if record.id not in self._running:
                self._running[record.id] = record, self._launcher.left(record.log)

    def _attend(self, schedule: Schedule, now: datetime) -> datetime:
        is_busy = any(record.schedule == schedule.name for record, _ in self._running.values())
        next_tick, records = attended(schedule, now, is_busy)
        for record in self._schedules.settle(schedule, next_tick, [self._with_log(record) for record in records]):
            if record.outcome == RUNNING:
                self._start(schedule, record)
            else:
                say(f"schedule: {schedule.name}: {record.outcome}, {_when(record)}")
        return next_tick

    def _with_log(self, record: Record) -> Record:
        log = self._launcher.log_of(record.schedule, record.scheduled_for) if record.outcome == RUNNING else ""
        return replace(record, log=log)

    def _start(self, schedule: Schedule, record: Record) -> None:
        say(f"schedule: {schedule.name}: {shlex.join(['ddpm', *schedule.command])}, {_when(record)}, into {record.log}")
        try:
            self._running[record.id] = record, self._launcher.start(schedule.command, record.log)
        except OSError as err:
            self._end(replace(record, outcome=FAILED, last_line=f"it could not be started: {err}"))

    def _collect(self, is_stopping: bool = False) -> None:
        """Note the runs that have ended."""
        for record, run in list(self._running.values()):
            code = run.poll()
            if code is None:
                continue
            exit_code = None if run.is_left else code
            outcome = _outcome(exit_code, is_stopping)
            self._end(replace(record, outcome=outcome, exit_code=exit_code, last_line=run.last_line()))
            del self._running[record.id]

    def _end(self, record: Record) -> None:
        self._schedules.end(replace(record, ended=self._clock.now()))
        say(f"schedule: {record.schedule}: {record.outcome}, {_when(record)}: {record.last_line}")

    def stop(self) -> None:
        """End what runs. Of what takes its time, the next daemon will note the end."""
        for _, run in self._running.values():
            run.stop()
        until = self._clock.now() + timedelta(seconds=STOP_S)
        with suppress(*AWAY):
            self._collect(is_stopping=True)
            while self._running and self._clock.now() < until:
                self._clock.wait(self._clock.now())
                self._collect(is_stopping=True)


def _outcome(code: int | None, is_stopping: bool) -> str:
    """Of a run that ended so; None: nobody knows how."""
    if code == 0:
        return DONE
    return INTERRUPTED if code is None or is_stopping else FAILED


def _when(record: Record) -> str:
    ticks = f" and {record.num_ticks - 1} before" if record.num_ticks > 1 else ""
    return f"the tick of {record.scheduled_for:%Y-%m-%d %H:%M:%S} UTC{ticks}"
