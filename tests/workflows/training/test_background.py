"""Writing beside the training: in order, one at a time, patient, and silent about nothing."""

import threading
import time

import pytest

from workflows.training.background import Background

AT_ONCE = (0.0, 0.0, 0.0)


class Storage:
    """Fails so many times in a row."""

    def __init__(self, failures=0):
        self.failures, self.written = failures, []

    def write(self, name):
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is away")
        self.written.append(name)


def test_pieces_are_done_in_order_and_all_of_them():
    storage, background = Storage(), Background()
    for name in range(5):
        background.start("piece", lambda name=name: storage.write(name))
    background.finish()

    assert storage.written == [0, 1, 2, 3, 4]


def test_the_caller_goes_on_while_a_piece_is_done_and_waits_for_it_before_the_next():
    go, background, done = threading.Event(), Background(), []
    background.start("first", lambda: (go.wait(10), done.append("first")))

    assert done == []

    threading.Timer(0.2, go.set).start()
    background.start("second", lambda: done.append("second"))

    assert done[0] == "first"
    background.finish()
    assert done == ["first", "second"]


def test_a_storage_that_fails_for_a_while_is_asked_again():
    storage, background = Storage(failures=len(AT_ONCE)), Background(AT_ONCE)
    background.start("piece", lambda: storage.write("it"))
    background.finish()

    assert storage.written == ["it"]


def test_a_piece_that_fails_to_the_end_is_told_of_and_the_next_is_tried(capsys):
    storage, background = Storage(failures=len(AT_ONCE) + 1), Background(AT_ONCE)
    background.start("checkpoint of step 5", lambda: storage.write("first"))
    background.start("checkpoint of step 10", lambda: storage.write("second"))
    background.finish()

    assert storage.written == ["second"]
    assert "checkpoint of step 5 could not be written: the disk is away; going on" in capsys.readouterr().err


def test_that_the_last_piece_failed_is_raised():
    storage, background = Storage(failures=len(AT_ONCE) + 1), Background(AT_ONCE)
    background.start("checkpoint of step 5", lambda: storage.write("it"))

    with pytest.raises(OSError, match="checkpoint of step 5 could not be written: the disk is away"):
        background.finish()


def test_who_abandons_it_waits_for_what_is_under_way_and_for_no_other_try():
    storage, background, started = Storage(failures=99), Background((60,)), time.monotonic()
    background.start("piece", lambda: storage.write("it"))
    background.abandon()

    assert time.monotonic() - started < 10
    assert storage.failures == 98
