import hashlib
import tracemalloc

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion.data.order import EpochOrder, OrderConfig, lanes_of, stretches

WORKERS = [1, 2, 3, 4, 7, 8]
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40), st.just(500)), min_size=1, max_size=8)


@st.composite
def runs(draw):
    """Shards of no, few or very many samples, a config, and some steps of one epoch or more."""
    sizes = draw(SIZES.filter(any))
    num_lanes = draw(st.integers(1, min(16, sum(sizes))))
    lane_batch = draw(st.integers(1, sum(sizes) // num_lanes))
    window = draw(st.integers(1, 2 * sum(sizes) // num_lanes))
    config = OrderConfig(
        seed=draw(st.integers(0, 2**64)),
        global_batch=num_lanes * lane_batch,
        num_lanes=num_lanes,
        shuffle_window=window,
    )
    num_steps = sum(sizes) // config.global_batch
    start = draw(st.integers(0, 2 * num_steps))
    return sizes, config, start, start + draw(st.integers(1, min(60, num_steps + 2)))


def side_by_side(sizes, config, lanes, start, stop, num_windows=1):
    """[lanes, steps * lane batch]"""
    return np.concatenate(list(stretches(sizes, config, lanes, start, stop, num_windows)), axis=1)


@given(runs(), st.integers(1, 5))
def test_stretches_side_by_side_are_what_the_lanes_give_to_the_steps(run, num_windows):
    sizes, config, start, stop = run
    lanes = list(range(config.num_lanes))
    num_steps = sum(sizes) // config.global_batch
    expected = [
        [EpochOrder(sizes, config, step // num_steps).lane_batch(lane, step % num_steps) for lane in lanes]
        for step in range(start, stop)
    ]

    assert np.array_equal(side_by_side(*run[:2], lanes, start, stop, num_windows), np.concatenate(expected, axis=1))


@given(runs(), st.data())
def test_global_batches_have_one_hash_for_any_number_of_workers_and_after_a_resume_at_any_step(run, data):
    sizes, config, start, stop = run
    resumed = data.draw(st.integers(start, stop - 1))

    def fingerprint(num_workers):
        steps = np.empty((stop - start, config.num_lanes, config.lane_batch), np.int64)
        for first, last in ((start, resumed), (resumed, stop)):
            for rank in range(num_workers if last > first else 0):
                lanes = lanes_of(rank, num_workers, config.num_lanes)
                seen = side_by_side(sizes, config, lanes, first, last).reshape(len(lanes), -1, config.lane_batch)
                steps[first - start : last - start, lanes] = seen.transpose(1, 0, 2)
        return hashlib.sha256(steps.tobytes()).hexdigest()

    assert len({fingerprint(num_workers) for num_workers in WORKERS if num_workers <= config.num_lanes}) == 1
    whole = side_by_side(sizes, config, list(range(config.num_lanes)), start, stop)
    steps = whole.reshape(config.num_lanes, -1, config.lane_batch).transpose(1, 0, 2)
    assert fingerprint(1) == hashlib.sha256(steps.tobytes()).hexdigest()


@given(runs())
def test_every_worker_takes_every_step_and_every_sample_comes_once_an_epoch_but_for_a_remainder(run):
    sizes, config, _, _ = run
    num_samples, num_steps = sum(sizes), sum(sizes) // config.global_batch
    for num_workers in [w for w in WORKERS if w <= config.num_lanes]:
        shares = [
            side_by_side(sizes, config, lanes_of(rank, num_workers, config.num_lanes), 0, num_steps)
            for rank in range(num_workers)
        ]
        seen = np.concatenate([share.flatten() for share in shares])

        assert {share.shape[1] for share in shares} == {num_steps * config.lane_batch}
        assert len(np.unique(seen)) == len(seen) == num_samples - num_samples % config.global_batch


@given(runs(), st.integers(1, 5))
@example(([200], OrderConfig(global_batch=2, num_lanes=1, shuffle_window=8), 3, 50), 1)  # a start inside of a window
def test_a_stretch_holds_whole_windows_and_a_start_inside_of_one_needs_only_the_rest(run, num_windows):
    sizes, config, start, stop = run
    lane_length = sum(sizes) // config.global_batch * config.lane_batch
    place = start * config.lane_batch
    for stretch in stretches(sizes, config, [0], start, stop, num_windows):
        place += stretch.shape[1]
        of_epoch = (place - 1) % lane_length + 1

        assert stretch.shape[1] <= num_windows * config.shuffle_window
        assert (
            of_epoch % (num_windows * config.shuffle_window) == 0
            or of_epoch == lane_length
            or (place == stop * config.lane_batch)
        )
    assert place == stop * config.lane_batch


def test_a_window_is_a_few_runs_of_positions():
    sizes, config = [50, 2000, 1, 30, 0, 400], OrderConfig(global_batch=8, num_lanes=4, shuffle_window=100)
    for stretch in stretches(sizes, config, [0, 1, 2, 3], 0, 300):
        for row in stretch:
            assert (np.diff(np.sort(row)) != 1).sum() <= len(sizes)  # a shard that ends, and the epoch's own end


def test_the_first_stretch_of_a_billion_samples_costs_no_memory_for_the_others():
    config, sizes = OrderConfig(global_batch=4096), [10_000] * 100_000
    tracemalloc.start()
    first = next(stretches(sizes, config, list(range(64)), 200_000, 10**9))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert first.shape == (64, 1024)
    assert peak < 20 * 2**20
