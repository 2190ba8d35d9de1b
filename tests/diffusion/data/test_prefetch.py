import threading
import time

import pytest

from diffusion.data.prefetch import Prefetch


def producers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("depth", [1, 4, 100])
def test_items_come_in_their_order(depth):
    assert list(Prefetch(iter(range(50)), depth)) == list(range(50))


def test_nothing_comes_of_nothing():
    assert list(Prefetch([])) == []


def test_false_items_are_items():
    assert list(Prefetch([None, 0, "", False])) == [None, 0, "", False]


def test_items_are_made_ahead_but_no_further_than_the_depth():
    made = []

    def items():
        for index in range(100):
            made.append(index)
            yield index

    ahead = Prefetch(items(), depth=3)
    next(ahead)

    assert wait_for(lambda: len(made) == 5)  # one taken, three ready, one in the producer's hand
    time.sleep(0.3)
    assert len(made) == 5
    ahead.close()


@pytest.mark.parametrize("error", [ValueError("a damaged tar"), KeyboardInterrupt(), MemoryError("no more")])
def test_what_the_producer_raises_is_raised_after_what_it_made(error):
    def items():
        yield from range(3)
        raise error

    taken = []
    with pytest.raises(type(error)) as caught:
        taken.extend(Prefetch(items()))

    assert caught.value is error
    assert taken == [0, 1, 2]


def test_the_thread_ends_with_its_items():
    list(Prefetch(range(10)))

    assert wait_for(lambda: not producers())


def test_the_thread_ends_when_the_consumer_stops_early():
    ahead = Prefetch(iter(int, 1), depth=2)
    next(ahead)

    assert producers()
    ahead.close()
    assert wait_for(lambda: not producers())


def test_the_thread_ends_when_the_consumer_raises():
    def consume():
        for item in Prefetch(iter(int, 1)):
            raise FloatingPointError(item)

    with pytest.raises(FloatingPointError):
        consume()

    assert wait_for(lambda: not producers())


def test_closing_waits_until_the_thread_has_ended_and_there_are_no_items_after_that():
    ahead = Prefetch(iter(int, 1), depth=2)
    next(ahead)
    ahead.close()

    assert not producers()
    assert list(ahead) == []
    ahead.close()


def test_a_producer_that_waits_for_room_ends_at_once():
    with Prefetch(iter(int, 1), depth=1) as ahead:
        next(ahead)
        wait_for(lambda: ahead._ready.full())
        started = time.monotonic()

    assert time.monotonic() - started < 0.05
    assert not producers()


@pytest.mark.parametrize("number_taken", [0, 1, 3])
def test_no_thread_is_left_after_an_error(number_taken):
    def items():
        yield from range(number_taken)
        raise ValueError("a damaged tar")

    ahead = Prefetch(items())
    with pytest.raises(ValueError, match="a damaged tar"):
        list(ahead)

    assert not producers()
    assert list(ahead) == []


def test_the_thread_ends_when_nobody_knows_the_items_any_more():
    ahead = Prefetch(iter(int, 1))
    next(ahead)
    del ahead

    assert wait_for(lambda: not producers())


def test_errors_may_be_items():
    errors = [ValueError("an item"), StopIteration()]

    assert list(Prefetch(errors)) == errors


def test_waiting_is_counted_and_only_waiting():
    def items():
        for _ in range(3):
            time.sleep(0.1)
            yield None

    ahead = Prefetch(items(), depth=3)
    next(ahead)
    waited = ahead.waited_s
    time.sleep(0.3)  # the other two are made meanwhile
    next(ahead)
    next(ahead)

    assert 0.05 < waited < 0.2
    assert ahead.waited_s - waited < 0.05


def test_producer_and_consumer_work_at_the_same_time():
    consumer_is_waiting = threading.Event()

    def items():
        yield "first"
        consumer_is_waiting.wait(10)
        yield "second"

    ahead = Prefetch(items())
    first = next(ahead)
    consumer_is_waiting.set()

    assert (first, next(ahead)) == ("first", "second")
