import hashlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion.seeding import generator, image_seeds, key, permuted

ARGUMENTS = st.tuples(st.integers(), st.text(), st.integers(), st.integers())


def first_words(*arguments):
    return generator(*arguments).bit_generator.random_raw(4).tolist()


@given(ARGUMENTS)
def test_equal_arguments_give_equal_streams(arguments):
    first, second = generator(*arguments), generator(*arguments)

    assert first.integers(2**63, size=5).tolist() == second.integers(2**63, size=5).tolist()


@given(ARGUMENTS, ARGUMENTS)
def test_different_arguments_give_different_streams(one, other):
    assume(one != other)

    assert first_words(*one) != first_words(*other)


@pytest.mark.parametrize("changed", [(1, "noise", 2, 3), (0, "drop", 2, 3), (0, "noise", 1, 3), (0, "noise", 2, 4)])
def test_the_stream_depends_on_every_argument(changed):
    stream = first_words(*changed)

    assert stream != first_words(0, "noise", 2, 3)


def test_digits_do_not_slide_between_step_and_lane():
    streams = {tuple(first_words(0, "noise", step, lane)) for step, lane in [(1, 11), (11, 1), (111, 0), (0, 111)]}

    assert len(streams) == 4


def test_the_key_is_128_bits_of_sha256():
    digest = hashlib.sha256(b"7/noise/2/3").digest()

    assert key(7, "noise", step=2, lane=3) == int.from_bytes(digest[:16], "little")


def test_a_stream_is_the_same_in_every_release():
    words = generator(0, "sample", step=1, lane=0).bit_generator.random_raw(3)

    assert words.tolist() == [
        15897877188839468690,
        6828020525931306301,
        11907171485255219388,
    ]  # recorded: a change would orphan every published seed


def test_a_stream_does_not_depend_on_draws_from_another():
    alone = generator(0, "noise").standard_normal(8)
    other, beside = generator(1, "noise"), generator(0, "noise")
    interleaved = [(other.standard_normal(), beside.standard_normal())[1] for _ in range(8)]

    np.testing.assert_array_equal(interleaved, alone)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), first_words(0, "noise")
    numpy_state = np.random.get_state()[1].copy()
    generator(0, "noise").standard_normal(1000)
    untouched = torch.equal(torch.get_rng_state(), state)
    numpy_untouched = np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(1)

    assert untouched
    assert numpy_untouched
    assert first_words(0, "noise") == first


def test_neighbouring_lanes_are_uncorrelated_unit_gaussians():
    draws = np.stack([generator(0, "noise", lane=lane).standard_normal(4000) for lane in range(200)])
    correlation = np.corrcoef(draws)[~np.eye(200, dtype=bool)]

    assert abs(draws.mean()) < 5 / draws.size**0.5  # five standard errors, here and below
    assert abs(draws.var() - 1) < 5 * (2 / draws.size) ** 0.5
    assert abs(correlation).max() < 6 / 4000**0.5  # the largest of 20,000 pairs


@given(st.integers(0, 2**63), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_part_of_a_request_has_the_seeds_of_the_whole(seed, start, length, rest):
    whole = image_seeds(seed, 0, start + length + rest)

    assert image_seeds(seed, start, start + length) == whole[start : start + length]


def test_a_hundred_thousand_image_seeds_are_distinct_and_fit_in_int64():
    seeds = image_seeds(0, 0, 100_000)

    assert len(set(seeds)) == 100_000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_requests_with_different_seeds_share_no_image():
    shared = set(image_seeds(0, 0, 1000)) & set(image_seeds(1, 0, 1000))

    assert shared == set()


@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_keyed_permutation_takes_every_index_to_a_place_of_its_own(size, seed):
    places = [permuted(index, size, seed, "blocks") for index in range(size)]

    assert sorted(places) == list(range(size))


def test_keyed_permutations_of_other_seeds_or_purposes_are_others():
    first, second, third = (
        [permuted(index, 1000, seed, purpose) for index in range(1000)]
        for seed, purpose in [(0, "blocks"), (1, "blocks"), (0, "others")]
    )

    assert first != second != third != first


def test_a_keyed_permutation_leaves_no_order_that_could_be_seen():
    """Displacements, neighbours and the first places of many keys are those of a uniform permutation, to 5 sigma."""
    size, num_keys = 500, 60
    orders = np.array([[permuted(index, size, seed, "blocks") for index in range(size)] for seed in range(num_keys)])
    rank_correlation = [np.corrcoef(np.arange(size), order)[0, 1] for order in orders]
    still_neighbours = (np.abs(np.diff(orders, axis=1)) == 1).mean()

    assert abs(np.mean(rank_correlation)) < 5 / (size * num_keys) ** 0.5
    assert abs(still_neighbours - 2 / size) < 5 * (2 / size / orders.size) ** 0.5
    assert abs(orders[:, 0].mean() - (size - 1) / 2) < 5 * size / (12 * num_keys) ** 0.5


def test_a_keyed_permutation_costs_the_same_at_any_size():
    places = {permuted(index, 10**12, 0, "blocks") for index in range(1000)}

    assert len(places) == 1000
    assert max(places) > 9 * 10**11
