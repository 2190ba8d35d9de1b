"""`ddpm schedule …` as a user calls it, beside daemons that are processes of their own, killed for real."""

import json
import re
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from smoke_training import DDPM
from waiting import wait_for

from workflows.cli import main
from workflows.scheduling.database import open_schedules
from workflows.scheduling.launcher import last_line
from workflows.scheduling.scheduler import POLL_S
from workflows.scheduling.schedules import DONE, FAILED, INTERRUPTED, RUNNING, Schedule
from workflows.storage import Environment

SOON_S = 20
"""on a machine that is free, it takes one or two"""
NIGHTLY = ("nightly", "--cron", "0 3 * * *")


@pytest.fixture
def ddpm(capsys, monkeypatch, tmp_path):
    """`ddpm schedule …` in this process, in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(["schedule", *words])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def daemon(tmp_path):
    """A function that starts `ddpm schedule run` there, and waits until it is at work."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *DDPM, "schedule", "run", *words], cwd=tmp_path, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert "schedule: at work on" in process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended_by(process, number):
    """What it said, after a signal ended it as one should."""
    process.send_signal(number)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert time.monotonic() - began < SOON_S
    assert said.splitlines()[-1] == "ddpm: error: interrupted; the same command goes on from here"
    return said


def history(ddpm, *words):
    return json.loads(ddpm("history", "--json", *words)[1])["history"]


def outcomes(ddpm, *words):
    return [each["outcome"] for each in history(ddpm, *words)]


def test_what_is_added_beside_a_running_daemon_is_run(ddpm, daemon, tmp_path):
    process = daemon()
    for name, words in {"good": ["config", "smoke"], "bad": ["verify", "nothing"]}.items():
        assert ddpm("add", name, "--cron", "0 3 * * *", "--", *words)[0] == 0
        code, _, said = ddpm("run-now", name)
        assert (code, "as soon as the daemon looks" in said) == (0, True)
    second, _, refused = ddpm("run")
    wait_for(lambda: {*outcomes(ddpm)} == {DONE, FAILED}, process)
    good, bad = history(ddpm, "good")[0], history(ddpm, "bad")[0]
    _, table, _ = ddpm("history")
    ended_by(process, signal.SIGTERM)

    assert second == 1
    assert refused == (
        f"ddpm: error: there is a daemon already on sqlite:///{tmp_path}/runs/schedules.db: process {process.pid}; "
        "one is enough\n"
    )
    assert "name: smoke" in Path(good["log"]).read_text()
    assert (good["exit_code"], bad["exit_code"]) == (0, 2)
    assert bad["last_line"].startswith("ddpm: error: no finished shard set")
    assert table.count("\n") == 3


def lasting(tmp_path, name="lasting"):
    """A schedule whose command goes on until it is told to end: another daemon."""
    with open_schedules(Environment(storage=str(tmp_path / "runs")), "", makes=True) as schedules:
        schedules.add(
            Schedule(
                name=name,
                cron="0 0 1 1 *",
                timezone="UTC",
                deadline_s=3600,
                command=("schedule", "run", "--storage", str(tmp_path / name)),
                next_tick=datetime.now(UTC) + timedelta(days=100),
                requested=datetime.now(UTC),
            )
        )


def at_work(tmp_path, name="lasting"):
    """The process of that command, when it is."""
    wait_for(lambda: (tmp_path / name / "schedules.db.lock").exists())
    return psutil.Process(int(wait_for((tmp_path / name / "schedules.db.lock").read_text)))


def test_a_killed_daemon_takes_its_commands_along_and_the_next_one_runs_them_again(ddpm, daemon, tmp_path):
    lasting(tmp_path)
    killed = daemon()
    first = at_work(tmp_path)
    first.suspend()  # so that it takes its time to end
    killed.kill()
    restarted = daemon()
    time.sleep(2 * POLL_S)
    before = outcomes(ddpm)
    (tmp_path / "lasting" / "schedules.db.lock").unlink()
    first.resume()
    second = at_work(tmp_path)
    between = outcomes(ddpm)
    said = ended_by(restarted, signal.SIGTERM)
    psutil.wait_procs([second], timeout=SOON_S)

    assert not first.is_running()
    assert not second.is_running()
    assert before == [RUNNING]
    assert between == [INTERRUPTED, RUNNING]
    assert outcomes(ddpm) == [INTERRUPTED, INTERRUPTED]
    assert said.count("lasting: interrupted") == 2


def test_an_outage_of_the_database_is_waited_out(ddpm, daemon, postgres, monkeypatch):
    monkeypatch.setenv("DDPM_SCHEDULES_URI", postgres.make_database("outage"))
    process = daemon()
    ddpm("add", *NIGHTLY, "--", "config", "smoke")
    postgres.stop()
    said = process.stderr.readline()
    postgres.start()
    ddpm("run-now", "nightly")
    wait_for(lambda: outcomes(ddpm) == [DONE], process)

    assert "schedule: nothing is started until the database is back: " in said
    assert "not-a-secret" not in said + ended_by(process, signal.SIGINT)


def test_a_schedule_is_listed_paused_resumed_and_removed(ddpm):
    added = ddpm("add", *NIGHTLY, "--timezone", "Europe/Berlin", "--json", "--", "verify", "my cats")
    listed = ddpm("list")[1]
    ddpm("pause", "nightly")
    paused = ddpm("list")[1]
    resumed = ddpm("resume", "nightly", "--json")[1]
    nobody = ddpm("run-now", "nightly")[2]
    removed = ddpm("remove", "nightly")

    assert json.loads(added[1])["command"] == ["verify", "my cats"]
    assert "nightly  0 3 * * *  Europe/Berlin" in listed
    assert listed.endswith("verify 'my cats'\n")
    assert "as soon as there is a daemon: see ddpm schedule run" in nobody
    assert "paused" in paused
    assert json.loads(resumed)["paused"] is False
    assert removed[0] == 0
    assert json.loads(ddpm("list", "--json")[1]) == {"schedules": []}


def test_a_schedule_that_was_not_paused_loses_no_tick_by_being_resumed(ddpm, tmp_path):
    ddpm("add", *NIGHTLY, "--", "config")
    with open_schedules(Environment(), "") as schedules:
        due = datetime.now(UTC) - timedelta(hours=1)
        schedules.change("nightly", next_tick=due)

    assert json.loads(ddpm("resume", "nightly", "--json")[1])["next_tick"] == due.isoformat()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", *NIGHTLY], "schedule add must be given a command after --"),
        (["add", *NIGHTLY, "--", "fly"], "command must be one of .*, got 'fly'"),
        (["add", *NIGHTLY, "--", "run", "--train.steps", "0"], "steps must be at least 1, got 0"),
        (["add", *NIGHTLY, "--", "schedule", "run"], "command must not be the daemon itself"),
        (["add", "nightly", "--", "config"], "--cron"),
        (["add", "nightly", "--cron", "at night", "--", "config"], "cron must be minute, .* got 'at night'"),
        (["add", *NIGHTLY, "--timezone", "Bonn", "--", "config"], "timezone must be a name .* got 'Bonn'"),
        (["add", *NIGHTLY, "--deadline-s", "0", "--", "config"], "deadline_s must be above 0 .* got 0"),
        (["add", "a/b", "--cron", "0 3 * * *", "--", "config"], "name must be 1 to 100 letters, .* got 'a/b'"),
        (["remove", "x"], "there are no schedules in .*/runs/schedules.db"),
        (["run", "--schedules-uri", "nonsense"], "schedules_uri must be .*got 'nonsense'"),
        (["history", "--limit", "0"], "limit must be at least 1, got 0"),
        (["dance"], "command must be one of .*got 'schedule dance'"),
    ],
)
def test_a_wrong_call_gets_one_line_and_leaves_nothing(ddpm, words, message, tmp_path):
    code, out, err = ddpm(*words)

    assert (code, out) == (2, "")
    assert err.startswith("ddpm: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("written", "last"),
    [
        (b"", ""),
        (b"a\nb\n", "b"),
        (b"a\r 10%\r 20%\r\n\n", "20%"),
        (b"x" * 9999, "x" * 500),
        (b"a\n" + b"\n" * 5000, ""),
        (b"\xff\n", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_last_line_of_a_log(tmp_path, written, last):
    (tmp_path / "log").write_bytes(written)

    assert last_line(tmp_path / "log") == last


def test_a_log_that_there_is_not_has_no_last_line(tmp_path):
    assert last_line(tmp_path / "log") == ""
