import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffusion.data.raw import Raw
from diffusion.data.read_ahead import ReadAhead

LANES, WIDTH, NUM = 4, 10, 5


class Store:
    """Every position is its own sample; what was asked for is written down."""

    def __init__(self):
        self.asked = []

    def fetch(self, positions):
        self.asked.append(positions.tolist())
        return {position: Raw(b"%d" % position, position, b"") for position in positions.tolist()}


def stretches():
    return (np.arange(LANES * WIDTH).reshape(LANES, WIDTH) + 100 * number for number in range(NUM))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:  # one thread: it fetches in the order in which it is asked
        yield pool


@pytest.mark.parametrize("num", [1, 2, 3, 10, 25])
@pytest.mark.parametrize("max_samples", [0, 40, 45, 1000])
def test_samples_come_lane_after_lane_in_the_order_of_the_stretches(num, max_samples, pool):
    ahead = ReadAhead(stretches(), Store().fetch, max_samples, pool)
    whole = np.concatenate(list(stretches()), axis=1)
    for start in range(0, NUM * WIDTH, num):
        positions, samples = ahead.take(min(num, NUM * WIDTH - start))

        assert positions.tolist() == whole[:, start : start + num].flatten().tolist()
        assert samples == {p: Raw(b"%d" % p, p, b"") for p in positions.tolist()}
    assert ahead.held == 0


@pytest.mark.parametrize("max_samples", [0, 40, 45, 65])
def test_no_more_is_held_than_fits_or_is_needed_at_once(max_samples, pool):
    ahead = ReadAhead(stretches(), Store().fetch, max_samples, pool)
    for _ in range(NUM * WIDTH):
        ahead.take(1)

        assert ahead.held <= max(max_samples, LANES * WIDTH)


def test_lanes_are_asked_for_in_the_order_in_which_they_are_needed(pool):
    store = Store()
    ahead = ReadAhead(stretches(), store.fetch, 50, pool)
    for _ in range(NUM * WIDTH):
        ahead.take(1)

    assert store.asked == [row for stretch in stretches() for row in stretch.tolist()]


def test_with_room_for_a_window_of_each_lane_the_next_ones_are_there_before_these_end(pool):
    """No burst: each sample that is used up makes room, and no step asks for more than a window or two."""
    store, asked = Store(), []
    ahead = ReadAhead(stretches(), store.fetch, LANES * WIDTH + WIDTH, pool)
    for _ in range((NUM - 1) * WIDTH):
        ahead.take(1)
        pool.submit(int).result()  # after all that was asked for
        asked.append(len(store.asked))

    assert asked[0] == LANES + 1
    assert max(np.diff(asked)) == 1
    assert asked[WIDTH - 1] >= 2 * LANES


def test_what_is_fetched_ahead_is_fetched_while_the_consumer_works(pool):
    arrived = threading.Event()
    store = Store()

    def fetch(positions):
        if positions[0] == 100:
            arrived.set()
        return store.fetch(positions)

    ReadAhead(stretches(), fetch, 50, pool).take(1)

    assert arrived.wait(10)


def test_used_samples_are_let_go(pool):
    ahead = ReadAhead(stretches(), Store().fetch, 0, pool)
    for used in range(1, WIDTH):
        ahead.take(1)

        assert len(ahead._open[0].samples) == LANES * (WIDTH - used)


def test_what_fetching_raises_is_raised_where_it_is_needed_and_not_before(pool):
    def fetch(positions):
        if positions[0] == 210:
            raise ValueError("lane 1 of the third stretch")
        return Store().fetch(positions)

    ahead = ReadAhead(stretches(), fetch, 1000, pool)
    ahead.take(2 * WIDTH)
    time.sleep(0.05)  # it has long been raised

    with pytest.raises(ValueError, match="lane 1 of the third stretch"):
        ahead.take(1)


def test_what_is_not_fetched_since_it_is_known_is_passed_over(pool):
    ahead = ReadAhead(stretches(), lambda positions: Store().fetch(positions[positions % 2 == 0]), 50, pool)
    positions, samples = ahead.take(WIDTH)

    assert positions.tolist() == list(range(LANES * WIDTH))
    assert list(samples) == list(range(0, LANES * WIDTH, 2))
