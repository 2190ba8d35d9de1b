"""Metrics for a tracking server that may be away: none lost, none twice, none out of order, and nobody waits."""

import threading
import time

from workflows.training.points import Points
from workflows.training.spec import Report


class Server:
    """Keeps the steps that it is told of; away for so many calls."""

    def __init__(self, away=0, said="nobody answers"):
        self.away, self.said, self.steps, self.calls = away, said, [], 0

    def deliver(self, reports):
        self.calls += 1
        if self.calls <= self.away:
            raise ConnectionError(self.said)
        self.steps += [report.step for report in reports]


def reports(num):
    return [Report(step, {"loss": 1.0}) for step in range(num)]


def test_all_points_arrive_in_order():
    server = Server()
    with Points(server.deliver) as points:
        for report in reports(100):
            points.add(report)

    assert server.steps == list(range(100))


def test_a_call_never_takes_more_than_mlflow_does():
    sizes = []
    with Points(lambda some: sizes.append(sum(len(report.metrics) for report in some))) as points:
        for step in range(500):
            points.add(Report(step, dict.fromkeys(map(str, range(30)), 0.0)))

    assert sum(sizes) == 500 * 30
    assert max(sizes) <= 1000


def test_what_a_server_that_is_away_could_not_take_arrives_later_and_the_user_is_told_once(capsys):
    server = Server(away=3)
    with Points(server.deliver, try_again_after_s=0.01) as points:
        for report in reports(100):
            points.add(report)
            time.sleep(0.001)

    assert server.steps == list(range(100))
    assert capsys.readouterr().err.count("MLflow cannot be told how it goes, and will be later: nobody answers") == 1


def test_an_error_without_a_word_loses_nothing_either(capsys):
    server = Server(away=2, said="")
    with Points(server.deliver, try_again_after_s=0.01) as points:
        points.add(Report(1, {"loss": 1.0}))

    assert server.steps == [1]
    assert "will be later: ConnectionError" in capsys.readouterr().err


def test_a_server_that_hangs_holds_nobody_up():
    answer = threading.Event()
    with Points(lambda some: answer.wait(10), patience_s=20) as points:
        started = time.monotonic()
        for report in reports(1000):
            points.add(report)
        took = time.monotonic() - started
        answer.set()

    assert took < 1


def test_the_user_is_told_once_of_a_server_that_only_hangs(capsys):
    answer = threading.Event()
    with Points(lambda some: answer.wait(10), patience_s=20, silence_s=0.05) as points:
        for report in reports(20):
            points.add(report)
            time.sleep(0.01)
        answer.set()

    assert capsys.readouterr().err.count("MLflow cannot be told how it goes, and will be later: no answer for") == 1


def test_points_that_nobody_takes_to_the_end_are_counted_for_the_user(capsys):
    with Points(Server(away=10**9).deliver, try_again_after_s=0.01, patience_s=0.1) as points:
        for report in reports(7):
            points.add(report)

    assert "MLflow could not be told of 7 points; it does not answer" in capsys.readouterr().err
