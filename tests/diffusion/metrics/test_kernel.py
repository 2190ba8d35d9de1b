import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.image.kid import poly_mmd

from diffusion.metrics.kernel import kernel_distance, squared_mmd

SEEDS = st.integers(0, 2**32)


def normal(num, seed, mean=0.0, dimensions=8):
    return np.random.default_rng(seed).normal(mean, 1, (num, dimensions))


@given(SEEDS, st.integers(2, 30))
def test_it_is_torchmetrics_discrepancy(seed, num):
    a, b = normal(num, seed), normal(num, seed + 1, mean=0.5)
    theirs = float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)))

    assert squared_mmd(a, b) == pytest.approx(theirs, abs=1e-4, rel=1e-9)


@given(SEEDS, st.integers(2, 12), st.integers(2, 12))
def test_it_is_the_mean_over_pairs_of_different_vectors(seed, num, others):
    a, b = normal(num, seed), normal(others, seed + 1)

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    pairs = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])

    assert squared_mmd(a, b) == pytest.approx(sum(pairs) - 2 * across, rel=1e-9, abs=1e-9)


def test_the_distance_is_the_mean_of_that_of_disjoint_subsets_with_its_standard_error():
    same = np.tile(normal(1, 0), (250, 1)), np.tile(normal(1, 1), (300, 1))  # all subsets alike, however dealt
    a, b = normal(250, 0), normal(300, 1)
    found = [kernel_distance(a, b), kernel_distance(a[::-1].copy(), b)]

    assert kernel_distance(*same) == pytest.approx((squared_mmd(same[0][:25], same[1][:25]), 0), abs=1e-9)
    assert abs(found[0].value - squared_mmd(a, b)) < 3 * found[0].standard_error
    assert found[0] == kernel_distance(a, b) != found[1]


def test_samples_whose_classes_take_turns_are_not_closer_for_it():
    classes = 20 * np.eye(10)[np.arange(2000) % 10]
    found = [
        kernel_distance(
            classes + normal(2000, seed, dimensions=10),
            np.random.default_rng(seed).permutation(classes) + normal(2000, seed + 99, dimensions=10),
        )
        for seed in range(5)
    ]

    assert np.mean([d.value for d in found]) > -2 * np.mean([d.standard_error for d in found])


def test_of_sets_of_one_distribution_it_is_zero_within_three_standard_errors_as_often_as_it_should_be():
    found = [kernel_distance(normal(400, 2 * seed), normal(400, 2 * seed + 1)) for seed in range(40)]

    assert sum(abs(distance.value) < 3 * distance.standard_error for distance in found) >= 38
    assert abs(np.mean([distance.value for distance in found])) < 3 * np.std([d.value for d in found]) / np.sqrt(40)


def test_of_others_it_is_far_from_it():
    distance = kernel_distance(normal(400, 0), normal(400, 1, mean=1.0))

    assert distance.value > 10 * distance.standard_error > 0


@pytest.mark.parametrize(("num", "others"), [(19, 100), (100, 19), (0, 100)])
def test_too_few_are_refused(num, others):
    with pytest.raises(ValueError, match=f"at least 20 samples on either side, got {min(num, others)}"):
        kernel_distance(normal(num, 0), normal(others, 1))
