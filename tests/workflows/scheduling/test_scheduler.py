"""The daemon's loop, with a clock that jumps, commands that only take their time, and a real database.

`Fuse` kills it: at the nth thing that it does (a statement, a commit, a command started, a wait), nothing of it is
done any more, as after `kill -9`.
"""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
import sqlalchemy as sql

from workflows.cron import Cron
from workflows.scheduling.scheduler import attended, run_daemon
from workflows.scheduling.schedules import DONE, FAILED, INTERRUPTED, MISSED, RUNNING, SKIPPED, Schedule, Schedules

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 10, 10, tzinfo=UTC)
FOR_EVER = datetime.max.replace(tzinfo=UTC)
END = START + 30 * DAY  # with a day of 25 hours in Berlin


class Killed(BaseException):
    """Not to be caught by anything."""


class Over(BaseException):
    """The test has seen enough."""


class Fuse:
    def __init__(self):
        self.left = None

    def burn(self, *_):
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise Killed


class JumpingClock:
    def __init__(self, fuse, launcher):
        self.time, self.end, self._fuse, self._launcher = START, END, fuse, launcher
        self.interrupts_at = None

    def now(self):
        return self.time

    def wait(self, until):
        self._fuse.burn()
        ends = [end for end, _ in self._launcher.alive.values() if end > self.time]
        self.time = max(min([until, self.end, *ends]), self.time + timedelta(milliseconds=100))
        if self.time >= self.end:
            self.end = FOR_EVER  # what tidies up may wait again
            raise Over
        if self.interrupts_at is not None and self.time >= self.interrupts_at:
            self.interrupts_at = None
            raise KeyboardInterrupt


class Pretended:
    """A command that takes its time and exits with a code of its own."""

    is_left = False

    def __init__(self, launcher, log):
        self._launcher, self._log = launcher, log
        self._end, self._code = launcher.alive[log]

    def poll(self):
        if self._log in self._launcher.alive and self._launcher.clock.now() >= self._end:
            del self._launcher.alive[self._log]
            self._launcher.ended[self._log] += 1
        return None if self._log in self._launcher.alive else self._code

    def stop(self):
        self._code, self._end = 130, self._launcher.clock.now() + SECOND
        self._launcher.alive[self._log] = self._end, 130

    def last_line(self):
        return "said"


class Left:
    is_left = True

    def __init__(self, launcher, log):
        self._launcher, self._log = launcher, log

    def poll(self):
        end, _ = self._launcher.alive.get(self._log, (START, 0))
        if self._launcher.clock.now() < end:
            return None
        self._launcher.alive.pop(self._log, None)
        return 0

    def stop(self):
        pass

    def last_line(self):
        return ""


class PretendingLauncher:
    """`takes(name)`: how long a command takes, and its exit code."""

    def __init__(self, fuse, takes=lambda name: (10 * MINUTE, 0)):
        self._fuse, self._takes = fuse, takes
        self.alive, self.started, self.ended = {}, Counter(), Counter()

    def log_of(self, name, tick):
        return f"{name}/{tick.isoformat()}"

    def start(self, command, log):
        self._fuse.burn()
        name = Path(log).parent.name
        assert name not in {Path(other).parent.name for other in self.alive}, "two runs of one schedule at once"
        duration, code = self._takes(name)
        self.alive[log] = self.clock.now() + duration, code
        self.started[log] += 1
        self._fuse.burn()
        return Pretended(self, log)

    def left(self, log):
        return Left(self, log)

    def orphan(self):
        """Their daemon is gone: within seconds, they are, too."""
        for log, (end, code) in self.alive.items():
            self.alive[log] = min(end, self.clock.now() + 3 * SECOND), code


class World:
    """A database, a clock and a launcher, and one daemon after the other."""

    def __init__(self, uri, takes=lambda name: (10 * MINUTE, 0)):
        self.fuse = Fuse()
        self.launcher = PretendingLauncher(self.fuse, takes)
        self.clock = self.launcher.clock = JumpingClock(self.fuse, self.launcher)
        engine = sql.create_engine(uri, poolclass=sql.NullPool)
        self.schedules = Schedules(engine)
        if engine.dialect.name == "sqlite":
            sql.event.listen(engine, "begin", lambda each: each.exec_driver_sql("pragma synchronous = off"))
        sql.event.listen(engine, "before_cursor_execute", self.fuse.burn)
        sql.event.listen(engine, "commit", self.fuse.burn)

    def add(self, name, cron, zone="UTC", deadline=DAY):
        next_tick = next(Cron(cron, zone).ticks(self.clock.now()))
        self.schedules.add(
            Schedule(
                name=name,
                cron=cron,
                timezone=zone,
                deadline_s=deadline.total_seconds(),
                command=("config",),
                next_tick=next_tick,
            )
        )
        return self

    def run(self, until=None):
        """A daemon, until that time, or until its fuse is burnt: how it ended."""
        self.clock.end = until or END
        try:
            run_daemon(self.schedules, self.clock, self.launcher)
        except (Over, Killed, KeyboardInterrupt) as err:
            self.fuse.left = None
            self.launcher.orphan()
            return type(err)

    def told(self, name="a"):
        """What became of its ticks: times, how many, and the outcome."""
        records = self.schedules.history(name)
        return [(f"{each.scheduled_for:%d %H:%M}", each.num_ticks, each.outcome) for each in records]


@pytest.fixture
def world(tmp_path):
    return World(f"sqlite:///{tmp_path}/schedules.db")


SCHEDULES = {
    "daily": ("30 2 * * *", "Europe/Berlin", 2 * DAY),
    "bihourly": ("15 */2 * * *", "Europe/Berlin", 3 * HOUR),
    "often": ("45 8-17/3 * * mon-fri", "America/New_York", HOUR),
}


def takes(drawn):
    durations = {"daily": [HOUR, HOUR, 30 * HOUR], "bihourly": [MINUTE, 20 * MINUTE, 150 * MINUTE], "often": [MINUTE]}
    return lambda name: (drawn.choice(durations[name]), drawn.choice([0, 0, 0, 1]))


def live_a_month(world, drawn):
    """With daemons that are killed, interrupted, and away for a while; how many."""
    num_daemons = 0
    while world.clock.now() < END:
        if drawn.random() < 0.3:
            world.clock.interrupts_at = world.clock.now() + drawn.random() * DAY
        else:
            world.fuse.left = drawn.choice([drawn.randrange(1, 30), drawn.randrange(1, 800)])
        world.run()
        num_daemons += 1
        world.clock.time += drawn.choice([timedelta(), 2 * SECOND, drawn.random() * HOUR, drawn.random() * DAY])
    world.run(world.clock.now() + HOUR)
    for name in SCHEDULES:  # of which no more ticks come, but what was interrupted is run again
        world.schedules.change(name, paused=True)
    world.run(world.clock.now() + 3 * DAY)
    return num_daemons


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 12))])
def test_in_a_month_of_daemons_killed_at_random_every_tick_is_answered_for_exactly_once(seed, tmp_path):
    check_a_month(f"sqlite:///{tmp_path}/schedules.db", random.Random(seed))


@pytest.mark.chaos
def test_in_a_month_of_daemons_killed_at_random_on_postgresql_too(postgres):
    uri = postgres.make_database("month").replace("postgresql:", "postgresql+psycopg:")
    check_a_month(uri, random.Random(99))


def check_a_month(uri, drawn):
    world = World(uri, takes(drawn))
    for name, (cron, zone, deadline) in SCHEDULES.items():
        world.add(name, cron, zone, deadline)

    assert live_a_month(world, drawn) > 10
    assert {each.outcome for each in world.schedules.history()} == {DONE, FAILED, INTERRUPTED, MISSED, SKIPPED}
    for name, (cron, zone, _) in SCHEDULES.items():
        records = world.schedules.history(name)
        until = world.schedules.get(name).next_tick
        ticks = list(takewhile(lambda tick: tick < until, Cron(cron, zone).ticks(START)))  # noqa: B023
        answered = sum(each.num_ticks - (each.outcome == INTERRUPTED) for each in records)  # its last will be due again
        runs = Counter(each.log for each in records if each.log)

        assert until > END
        assert answered == len(ticks)
        assert all(any(each.since <= tick <= each.scheduled_for for each in records) for tick in ticks)
        assert all(world.launcher.started[log] <= count for log, count in runs.items())
        assert all(world.launcher.ended[each.log] for each in records if each.outcome in (DONE, FAILED))


def test_ticks_run_at_their_time(world):
    world.add("a", "0 3 * * *").run(START + 2 * DAY)

    assert world.told() == [("10 03:00", 1, DONE), ("11 03:00", 1, DONE)]
    assert [record.started - record.scheduled_for for record in world.schedules.history()] == [timedelta()] * 2
    assert [record.ended - record.started for record in world.schedules.history()] == [10 * MINUTE] * 2


def test_a_failure_is_noted_with_its_code_and_its_last_word(tmp_path):
    world = World(f"sqlite:///{tmp_path}/schedules.db", lambda name: (MINUTE, 1)).add("a", "0 3 * * *")
    world.run(START + DAY)
    (record,) = world.schedules.history()

    assert (record.outcome, record.exit_code, record.last_line) == (FAILED, 1, "said")


def test_a_tick_while_the_last_run_is_at_work_is_skipped(tmp_path):
    world = World(f"sqlite:///{tmp_path}/schedules.db", lambda name: (90 * MINUTE, 0))
    world.add("a", "0 * * * *").add("b", "0 12 * * *").run(START + 4.5 * HOUR)

    assert world.told() == [
        ("10 01:00", 1, DONE),
        ("10 02:00", 1, SKIPPED),
        ("10 03:00", 1, INTERRUPTED),
        ("10 04:00", 1, SKIPPED),
    ]


def test_schedules_do_not_wait_for_each_other(tmp_path):
    world = World(f"sqlite:///{tmp_path}/schedules.db", lambda name: (10 * HOUR if name == "a" else MINUTE, 0))
    world.add("a", "0 3 * * *").add("b", "0 4 * * *").run(START + 20 * HOUR)

    assert world.told("b") == [("10 04:00", 1, DONE)]
    assert world.told("a") == [("10 03:00", 1, DONE)]


def test_ticks_of_an_outage_run_as_one(world):
    world.add("a", "0 * * * *")
    world.clock.time += 5.5 * HOUR
    world.run(START + 6.5 * HOUR)

    assert world.told() == [("10 05:00", 5, DONE), ("10 06:00", 1, DONE)]
    assert world.schedules.history()[0].since == START + HOUR


def test_ticks_past_their_deadline_are_missed(world):
    world.add("a", "0 * * * *", deadline=2 * HOUR)
    world.clock.time += 5.5 * HOUR
    world.run(START + 5.9 * HOUR)

    assert world.told() == [("10 03:00", 3, MISSED), ("10 05:00", 2, DONE)]


def test_a_run_that_was_interrupted_is_run_again_by_the_next_daemon(world):
    world.add("a", "0 3 * * *").run(START + 3 * HOUR + MINUTE)
    world.run(START + 4 * HOUR)

    assert world.told() == [("10 03:00", 1, INTERRUPTED), ("10 03:00", 1, DONE)]


def test_a_run_that_was_interrupted_is_not_run_again_past_its_deadline(world):
    world.add("a", "0 3 * * *", deadline=HOUR).run(START + 3 * HOUR + MINUTE)
    world.clock.time += 2 * HOUR
    world.run(START + 6 * HOUR)

    assert world.told() == [("10 03:00", 1, INTERRUPTED), ("10 03:00", 1, MISSED)]


def test_a_run_that_was_interrupted_is_not_run_again_if_its_schedule_was_paused(world):
    world.add("a", "0 3 * * *").run(START + 3 * HOUR + MINUTE)
    world.schedules.change("a", paused=True, requested=None)
    world.run(START + 2 * DAY)

    assert world.told() == [("10 03:00", 1, INTERRUPTED)]


def test_a_command_that_its_killed_daemon_left_is_waited_for(world):
    world.add("a", "0 3 * * *")
    world.clock.time += 3 * HOUR
    world.fuse.left = 10
    assert world.run() is Killed
    assert list(world.launcher.alive) == ["a/2026-10-10T03:00:00+00:00"]  # for three more seconds
    world.run(START + 4 * HOUR)
    left, again = world.schedules.history("a")

    assert (left.outcome, again.outcome) == (INTERRUPTED, DONE)
    assert again.started - left.started >= 3 * SECOND


def test_a_request_runs_now_and_a_paused_schedule_only_so(world):
    world.add("a", "0 3 * * *")
    world.schedules.change("a", paused=True)
    world.run(START + 5 * HOUR)
    world.schedules.change("a", requested=world.clock.now())
    world.run(START + 2 * DAY)

    assert world.told() == [("10 05:00", 1, DONE)]


def test_what_is_decided_of_a_schedule_that_somebody_changed_meanwhile_is_dropped(world):
    world.add("a", "0 3 * * *")
    (before,) = world.schedules.all()
    next_tick, records = attended(before, START + DAY, is_busy=False)
    world.schedules.change("a", paused=True)

    assert world.schedules.settle(before, next_tick, records) == []
    assert world.schedules.history() == []
    assert world.schedules.get("a").next_tick == before.next_tick


def test_a_command_that_cannot_be_started_has_failed(world, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(world.launcher, "start", refuse)
    world.add("a", "0 3 * * *").run(START + DAY)
    (record,) = world.schedules.history()

    assert (record.outcome, record.last_line) == (FAILED, "it could not be started: no space left")


@pytest.mark.parametrize(("busy", "outcome"), [(False, RUNNING), (True, SKIPPED)])
def test_a_request_and_ticks_that_are_due_are_one_run(busy, outcome):
    schedule = Schedule(
        name="a", cron="0 * * * *", timezone="UTC", deadline_s=7200, command=("config",), next_tick=START,
        requested=START + 2.5 * HOUR,
    )  # fmt: skip
    next_tick, records = attended(schedule, START + 3 * HOUR, busy)

    assert next_tick == START + 4 * HOUR
    assert [(each.since, each.scheduled_for, each.num_ticks, each.outcome) for each in records] == [
        (START, START, 1, MISSED),
        (START + HOUR, START + 3 * HOUR, 4, outcome),
    ]
