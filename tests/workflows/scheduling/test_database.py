"""Schedules in a real SQLite and a real PostgreSQL, shared by threads and processes."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import psycopg
import pytest
import sqlalchemy as sql

from workflows.scheduling.database import AWAY, only_daemon, open_schedules
from workflows.scheduling.schedules import DONE, INTERRUPTED, RUNNING, Record, Schedule
from workflows.storage import Environment, JobFailed

TICK = datetime(2026, 11, 24, 2, tzinfo=UTC)
NUMBERS = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request, tmp_path):
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/schedules.db"
    return request.getfixturevalue("postgres").make_database(f"schedules-{next(NUMBERS)}")


@pytest.fixture
def opened():
    """A function: the schedules at a URI."""
    with ExitStack() as stack:
        yield lambda uri: stack.enter_context(open_schedules(Environment(), uri, makes=True))


def schedule(name="a", **values):
    words = ("config", "digits", "--name", 'it\'s $HOME, "quoted"')
    given = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "deadline_s": 0.1 + 0.2, "command": words}
    return Schedule(name=name, **given, next_tick=TICK, **values)


def record(name="a", outcome=RUNNING):
    return Record(schedule=name, scheduled_for=TICK, since=TICK, num_ticks=1, outcome=outcome, started=TICK)


def test_a_schedule_comes_back_as_it_was_for_another_process_too(uri, opened):
    added = schedule(requested=TICK + timedelta(microseconds=1))
    opened(uri).add(added)

    assert opened(uri).all() == [added]


def test_a_name_is_taken_once_unless_it_is_to_be_replaced(uri, opened):
    schedules = opened(uri)
    schedules.add(schedule())
    with pytest.raises(ValueError, match="name must be new, got 'a', which there is already"):
        schedules.add(schedule(paused=True))
    schedules.add(schedule("b"), replaces=True)
    schedules.add(schedule(paused=True), replaces=True)

    assert schedules.all() == [schedule(paused=True), schedule("b")]


def test_of_a_schedule_that_there_is_not_one_is_told_which_there_are(uri, opened):
    schedules = opened(uri)
    for act in (schedules.get, schedules.remove, lambda name: schedules.change(name, paused=True)):
        with pytest.raises(ValueError, match=r"name must be that of a schedule \(there are none\), got 'x'"):
            act("x")
    schedules.add(schedule("a"))
    schedules.add(schedule("b"))

    with pytest.raises(ValueError, match=r"name must be that of a schedule \(a, b\), got 'x'"):
        schedules.remove("x")


def test_history_outlives_its_schedule_and_the_newest_come_last(uri, opened):
    schedules = opened(uri)
    for name in ("a", "b"):
        schedules.add(schedule(name))
        for hours in (1, 2):
            before = schedules.get(name)
            schedules.settle(before, before.next_tick + timedelta(hours=hours), [record(name)])
    schedules.remove("a")

    assert [(each.schedule, each.outcome) for each in schedules.history()] == [(name, RUNNING) for name in "aabb"]
    assert [each.id for each in schedules.history(limit=2)] == [each.id for each in schedules.history("b")]


@pytest.mark.parametrize("paused", [False, True])
def test_an_interrupted_run_is_due_again_unless_its_schedule_is_paused(uri, paused, opened):
    schedules = opened(uri)
    schedules.add(schedule(paused=paused))
    (running,) = schedules.settle(schedules.get("a"), TICK + timedelta(days=1), [record()])
    schedules.end(replace(running, outcome=INTERRUPTED, ended=TICK))
    schedules.end(replace(running, outcome=DONE, ended=TICK))  # nobody ends a run twice

    assert schedules.get("a").requested == (None if paused else TICK)
    assert [each.outcome for each in schedules.history()] == [INTERRUPTED]


def test_of_two_who_settle_the_same_ticks_one_does(uri, opened):
    schedules = [opened(uri) for _ in range(8)]
    schedules[0].add(schedule())
    seen = [each.get("a") for each in schedules]
    with ThreadPoolExecutor(8) as pool:
        noted = list(
            pool.map(lambda each, old: each.settle(old, TICK + timedelta(days=1), [record()]), schedules, seen)
        )

    assert sorted(map(len, noted)) == [0] * 7 + [1]
    assert len(schedules[0].history()) == 1


def test_two_who_open_a_new_database_and_add_at_once_are_fine(uri, opened):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: opened(uri).add(schedule(f"s{number}")), range(16)))

    assert len(opened(uri).all()) == 16


def test_there_is_one_daemon_at_a_time(uri, opened):
    with only_daemon(opened(uri)) as still_alone:
        still_alone()
        with (
            pytest.raises(JobFailed, match=r"there is a daemon already on .*; one is enough") as refused,
            only_daemon(opened(uri)),
        ):
            pass
    with only_daemon(opened(uri)) as still_alone:
        still_alone()

    assert "not-a-secret" not in str(refused.value)


def cut_off(postgres):
    """All connections to a server, as when the network goes."""
    with psycopg.connect(postgres.uri, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = user and pid <> pg_backend_pid()"
        )


def test_a_daemon_whose_connection_is_lost_is_told_and_takes_the_lock_again(postgres, opened):
    uri = postgres.make_database("lost")
    with only_daemon(opened(uri)) as still_alone:
        cut_off(postgres)
        with pytest.raises(AWAY):
            still_alone()
        still_alone()

        with pytest.raises(JobFailed, match="there is a daemon already"), only_daemon(opened(uri)):
            pass


def test_a_daemon_that_lost_its_lock_to_another_is_told_so(postgres, opened):
    uri = postgres.make_database("taken")
    with only_daemon(opened(uri)) as first:
        cut_off(postgres)
        with only_daemon(opened(uri)):
            with pytest.raises(AWAY):
                first()
            with pytest.raises(JobFailed, match=r"there is a daemon already on .*: another connection holds its lock"):
                first()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense", "schedules_uri must be sqlite:///FILE or postgresql://USER@HOST/NAME, got 'nonsense'"),
        ("mysql://me:pw@host/name", r"schedules_uri must be .*, got 'mysql://me:\*\*\*@host/name'"),
        ("sqlite://", "schedules_uri must be sqlite:///FILE"),
        ("sqlite:///:memory:", "schedules_uri must be sqlite:///FILE"),
        ("postgresql://me:pw@127.0.0.1:1/name", r"must be a database that answers; .*me:\*\*\*@127.0.0.1:1/name says:"),
    ],
)
def test_a_database_that_is_none_is_refused_and_no_password_is_told(uri, message, opened):
    with pytest.raises(ValueError, match=message):
        opened(uri)


def test_a_wrong_password_is_refused(postgres, opened):
    with pytest.raises(ValueError, match="password authentication failed"):
        opened(postgres.uri.replace("not-a-secret", "wrong"))


def test_where_nothing_was_added_there_is_nothing_to_look_at(tmp_path):
    there = open_schedules(Environment(storage=f"{tmp_path}/runs"), "")
    with pytest.raises(ValueError, match=r"there are no schedules in .*/runs/schedules.db"), there:
        pass

    assert not list(tmp_path.iterdir())


def test_remote_storage_needs_a_database(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    there = open_schedules(Environment(storage="s3://bucket/runs"), "")
    with pytest.raises(ValueError, match="schedules_uri must be given with a remote storage such as s3"), there:
        pass


def test_the_environment_names_the_database(monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_SCHEDULES_URI", f"sqlite:///{tmp_path}/mine.db")
    with open_schedules(Environment(storage="s3://bucket/runs"), "", makes=True) as schedules:
        schedules.add(schedule())

    assert (tmp_path / "mine.db").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-a", "a b", "ä", "x" * 101])
def test_a_name_that_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="name must be 1 to 100 letters, digits or '-', the first not '-', got"):
        schedule(name)


def test_tables_are_those_of_other_programs_neighbours(postgres, opened):
    """The schedules may live in MLflow's database."""
    names = sql.inspect(opened(postgres.make_database("shared")).engine).get_table_names()

    assert sorted(names) == ["ddpm_schedule_history", "ddpm_schedules"]
