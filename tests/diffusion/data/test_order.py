import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.order import EpochOrder, OrderConfig, lanes_of

WORKERS = [1, 2, 3, 4, 7, 8]


@st.composite
def epochs(draw, max_samples=300):
    """Shard sizes with at least one global batch in them, a config and an epoch."""
    sizes = draw(st.lists(st.integers(0, max_samples // 6), min_size=1, max_size=6).filter(any))
    num_lanes = draw(st.integers(1, min(64, sum(sizes))))
    lane_batch = draw(st.integers(1, sum(sizes) // num_lanes))
    config = OrderConfig(
        seed=draw(st.integers(0, 2**64)),
        global_batch=num_lanes * lane_batch,
        num_lanes=num_lanes,
        shuffle_window=draw(st.integers(1, 2 * max_samples // num_lanes)),
    )
    return sizes, config, draw(st.integers(0, 1000))


def walk(sizes, config, epoch):
    """Every lane's positions of a whole epoch, [lanes, steps * lane batch]."""
    order = EpochOrder(sizes, config, epoch)
    steps = [
        [order.lane_batch(lane, step) for lane in range(config.num_lanes)] for step in range(order.num_steps)
    ]  # [steps, lanes, lane batch]
    return np.concatenate(steps, axis=1)


def unshuffled(config):
    """The same epoch without the permutation inside windows."""
    return OrderConfig(seed=config.seed, global_batch=config.global_batch, num_lanes=config.num_lanes, shuffle_window=1)


@given(epochs())
@settings(deadline=None)
def test_an_epoch_shows_no_sample_twice_and_leaves_out_only_the_remainder(epoch):
    sizes, config, _ = epoch
    seen = walk(*epoch).flatten()

    assert len(set(seen.tolist())) == len(seen) == sum(sizes) - sum(sizes) % config.global_batch
    assert set(seen.tolist()) <= set(range(sum(sizes)))


def test_every_sample_is_left_out_about_equally_often():
    sizes, config, num_epochs = [5, 7, 3], OrderConfig(global_batch=4, num_lanes=2), 1000
    left_out = np.zeros(15)
    for epoch in range(num_epochs):
        left_out[list(set(range(15)) - set(walk(sizes, config, epoch).flatten().tolist()))] += 1
    expected = num_epochs * 3 / 15

    assert np.abs(left_out - expected).max() < 5 * expected**0.5


@given(epochs())
@settings(deadline=None)
def test_every_lane_gives_the_same_number_of_samples_to_every_step(epoch):
    sizes, config, number = epoch
    order = EpochOrder(sizes, config, number)
    given_samples = {
        len(order.lane_batch(lane, step)) for lane in range(config.num_lanes) for step in range(order.num_steps)
    }

    assert given_samples == {config.lane_batch}
    assert order.num_steps == sum(sizes) // config.global_batch


@given(st.integers(1, 64).flatmap(lambda lanes: st.tuples(st.integers(1, lanes), st.just(lanes))))
def test_workers_share_out_all_lanes_as_evenly_as_can_be(workers_and_lanes):
    num_workers, num_lanes = workers_and_lanes
    shares = [lanes_of(rank, num_workers, num_lanes) for rank in range(num_workers)]

    assert sorted(lane for share in shares for lane in share) == list(range(num_lanes))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(epochs(), st.data())
@settings(deadline=None)
def test_the_global_batch_is_lane_by_lane_the_same_for_any_number_of_workers(epoch, data):
    sizes, config, number = epoch
    whole = walk(*epoch)
    step = data.draw(st.integers(0, EpochOrder(sizes, config, number).num_steps - 1))
    expected = whole[:, step * config.lane_batch : (step + 1) * config.lane_batch]
    for num_workers in [w for w in WORKERS if w <= config.num_lanes]:
        found = {}
        for rank in range(num_workers):
            order = EpochOrder(sizes, config, number)  # a seek: this worker has seen nothing of the epoch before
            for lane in lanes_of(rank, num_workers, config.num_lanes):
                found[lane] = order.lane_batch(lane, step)

        assert np.array_equal(np.stack([found[lane] for lane in range(config.num_lanes)]), expected)


@given(epochs(), st.data())
@settings(deadline=None)
def test_steps_may_be_taken_in_any_order(epoch, data):
    sizes, config, number = epoch
    whole, order = walk(*epoch), EpochOrder(sizes, config, number)
    for step in data.draw(st.permutations(range(order.num_steps)))[:10]:
        lane = data.draw(st.integers(0, config.num_lanes - 1))
        expected = whole[lane, step * config.lane_batch : (step + 1) * config.lane_batch]

        assert np.array_equal(order.lane_batch(lane, step), expected)


@given(epochs())
@settings(deadline=None)
def test_a_window_is_permuted_only_inside_itself(epoch):
    sizes, config, number = epoch
    shuffled, plain = walk(*epoch), walk(sizes, unshuffled(config), number)
    for start in range(0, shuffled.shape[1], config.shuffle_window):
        window = np.s_[:, start : start + config.shuffle_window]

        assert np.array_equal(np.sort(shuffled[window]), np.sort(plain[window]))


@given(epochs())
@settings(deadline=None)
def test_before_the_windows_a_shard_lies_in_one_piece_and_the_rolled_one_in_two(epoch):
    sizes, config, number = epoch
    line = walk(sizes, unshuffled(config), number).flatten()
    starts = set(np.cumsum([0, *sizes]).tolist())
    jumps = line[1:][np.diff(line) != 1]

    assert set(jumps.tolist()) <= starts
    assert len(jumps) <= sum(size > 0 for size in sizes)


def test_lanes_are_shuffled_independently():
    config = OrderConfig(global_batch=4, num_lanes=4, shuffle_window=100)
    places = walk([400], config, 0) - walk([400], unshuffled(config), 0)

    assert len({tuple(lane) for lane in places.tolist()}) == 4


def test_windows_are_shuffled_otherwise_in_every_epoch():
    config, orders = OrderConfig(global_batch=4, num_lanes=1, shuffle_window=100), set()
    for epoch in range(5):
        place = {position: i for i, position in enumerate(walk([100], unshuffled(config), epoch)[0].tolist())}
        orders.add(tuple(place[position] for position in walk([100], config, epoch)[0].tolist()))

    assert len(orders) == 5


def test_shards_follow_each_other_otherwise_in_every_epoch():
    config = OrderConfig(global_batch=1, num_lanes=1, shuffle_window=1)
    circles = set()
    for epoch in range(50):
        shards = (walk([10] * 4, config, epoch)[0] // 10).tolist()
        met = list(dict.fromkeys(shards))
        circles.add(tuple(met[(met.index(0) + i) % 4] for i in range(4)))

    assert len(circles) == 6  # all ways to sit in a circle: the roll alone would be one


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_seed_or_epoch_is_another_order_of_the_same_samples(seed, epoch):
    sizes, shape = [30, 20, 50], {"global_batch": 10, "num_lanes": 5, "shuffle_window": 8}
    first = walk(sizes, OrderConfig(seed=0, **shape), 0)
    other = walk(sizes, OrderConfig(seed=seed, **shape), epoch)

    assert not np.array_equal(first, other)
    assert sorted(first.flatten()) == sorted(other.flatten())


def test_a_billion_samples_are_ordered_without_listing_them():
    config, sizes = OrderConfig(global_batch=4096), [10_000] * 100_000
    tracemalloc.start()
    positions = EpochOrder(sizes, config, epoch=3).lane_batch(lane=63, step=200_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0 <= positions.min() <= positions.max() < 10**9
    assert peak < 20 * 2**20  # bytes: a few numbers a shard, not one a sample


def test_fewer_samples_than_one_global_batch_are_refused():
    with pytest.raises(ValueError, match="global_batch must be at most the number of training samples, 9, got 10"):
        EpochOrder([4, 5], OrderConfig(global_batch=10, num_lanes=5), epoch=0)


def test_more_workers_than_lanes_are_refused():
    with pytest.raises(ValueError, match="num_workers must be at most num_lanes=4, got 5"):
        lanes_of(0, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_lanes": 0}, "num_lanes must be at least 1, got 0"),
        ({"global_batch": 100}, "global_batch must be a positive multiple of num_lanes=64, got 100"),
        ({"global_batch": 0}, "global_batch must be a positive multiple of num_lanes=64, got 0"),
        ({"global_batch": -64}, "global_batch must be a positive multiple of num_lanes=64, got -64"),
        ({"shuffle_window": 0}, "shuffle_window must be at least 1, got 0"),
    ],
)
def test_an_impossible_order_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        OrderConfig(**options)
