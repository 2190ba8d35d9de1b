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
