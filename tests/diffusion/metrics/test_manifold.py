import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from diffusion.metrics import manifold
from diffusion.metrics.manifold import among, precision_recall, radii


def normal(num, seed, mean=0.0, std=1.0, dimensions=4):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, std, (num, dimensions)))


@given(st.integers(0, 2**32), st.integers(4, 40), st.integers(1, 40))
def test_it_is_what_brute_force_finds(seed, num, num_queries):
    references, queries = normal(num, seed), normal(num_queries, seed + 1)
    reach = np.sort(cdist(references, references), axis=1)[:, 3]
    expected = (cdist(queries, references) <= reach).any(axis=1)

    np.testing.assert_allclose(radii(references), reach, rtol=1e-9)
    assert among(queries, references).tolist() == expected.tolist()


def test_of_one_distribution_both_are_near_one():
    precision, recall = precision_recall(normal(1000, 0), normal(1000, 1))

    assert min(precision, recall) > 0.8


def test_samples_without_variety_have_precision_alone():
    precision, recall = precision_recall(normal(500, 0, std=0.05), normal(500, 1))

    assert precision > 0.99
    assert recall < 0.1


def test_samples_with_too_much_of_it_have_recall_alone():
    precision, recall = precision_recall(normal(500, 0, std=10.0), normal(500, 1))

    assert precision < 0.1
    assert recall > 0.9


def test_samples_of_something_else_have_neither():
    assert precision_recall(normal(200, 0, mean=100.0), normal(200, 1)) == (0, 0)


def test_copies_have_both():
    reals = normal(200, 0)

    assert precision_recall(reals.clone(), reals) == (1, 1)


def test_rows_at_a_time_change_nothing(monkeypatch):
    samples, reals = normal(100, 0), normal(130, 1)
    whole = precision_recall(samples, reals)
    monkeypatch.setattr(manifold, "ROWS", 7)

    assert precision_recall(samples, reals) == whole


@pytest.mark.parametrize(("num", "others"), [(3, 100), (100, 3), (0, 100)])
def test_too_few_are_refused(num, others):
    with pytest.raises(ValueError, match=f"at least 4 samples, got {min(num, others)}"):
        precision_recall(normal(num, 0), normal(others, 1))
