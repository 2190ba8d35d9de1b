import numpy as np
import pytest
import torch
from given_features import Given
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion.metrics.frechet import Moments, frechet_distance, merged, moments

SEEDS = st.integers(0, 2**32)


def gaussian(seed, dimensions=6, rank=20):
    """Moments of a few correlated vectors; singular where the rank is below the dimensions."""
    rng = np.random.default_rng(seed)
    return moments(
        rng.standard_normal((rank, dimensions)) @ rng.standard_normal((dimensions, dimensions)) + rng.normal()
    )


def diagonal(mean, variances):
    return Moments(2, np.asarray(mean, dtype=float), np.diag(variances).astype(float))  # scatter / (2 - 1)


@given(SEEDS, st.integers(1, 8))
def test_for_diagonal_gaussians_the_distance_has_its_closed_form(seed, dimensions):
    rng = np.random.default_rng(seed)
    (mean_a, mean_b), (var_a, var_b) = rng.normal(size=(2, dimensions)), rng.exponential(size=(2, dimensions))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()

    assert frechet_distance(diagonal(mean_a, var_a), diagonal(mean_b, var_b)) == pytest.approx(expected, abs=1e-9)


@given(SEEDS)
@settings(deadline=None)
def test_the_distance_is_that_of_scipys_matrix_root(seed):
    a, b = gaussian(seed), gaussian(seed + 1)
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)

    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(SEEDS, st.integers(2, 20))
def test_the_distance_to_itself_is_zero(seed, rank):
    a = gaussian(seed, rank=rank)

    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * np.trace(a.covariance))


@given(SEEDS, st.integers(2, 20))
def test_the_distance_is_symmetric_and_not_negative(seed, rank):
    a, b = gaussian(seed, rank=rank), gaussian(seed + 1)
    there, back = frechet_distance(a, b), frechet_distance(b, a)

    assert there == pytest.approx(back, rel=1e-6)
    assert there >= 0


@given(SEEDS)
def test_the_distance_does_not_change_when_both_are_turned(seed):
    a, b = gaussian(seed), gaussian(seed + 1)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))
    turned = [Moments(m.num_samples, turn @ m.mean, turn @ m.scatter @ turn.T) for m in (a, b)]

    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_moments_are_mean_and_covariance(dimensions):
    features = np.random.default_rng(0).normal(size=(100, dimensions))
    found = moments(features)
    centred = features - features.mean(axis=0)

    np.testing.assert_allclose(found.mean, features.sum(axis=0) / 100)
    np.testing.assert_allclose(found.covariance, centred.T @ centred / 99)
    assert found.num_samples == 100


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="a covariance needs at least 2 samples, got 1"):
        _ = moments(np.zeros((1, 3))).covariance


@pytest.mark.parametrize("make", [lambda: moments(np.zeros((0, 3))), lambda: merged([])])
def test_nothing_has_no_moments(make):
    with pytest.raises(ValueError, match="moments need at least 1"):
        make()


@given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_moments_of_parts_are_merged_to_those_of_the_whole(seed, sizes):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(10 * rng.normal(), 1, (size, 4)) for size in sizes]
    found, whole = merged(map(moments, parts)), moments(np.concatenate(parts))

    assert found.num_samples == whole.num_samples
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-9)
    np.testing.assert_allclose(found.scatter, whole.scatter, atol=1e-9 * (1 + np.trace(whole.scatter)))


def test_float32_features_far_from_zero_lose_nothing_to_rounding():
    features = np.random.default_rng(0).normal(1000, 1, (5000, 3)).astype(np.float32)

    np.testing.assert_allclose(moments(features).covariance, np.cov(features.astype(np.float64), rowvar=False))


def test_it_is_torchmetrics_distance():
    rng = np.random.default_rng(0)
    samples, reals = rng.normal(0.3, 1.2, (300, 16)), rng.normal(0, 1, (400, 16))
    theirs = FrechetInceptionDistance(feature=Given(16)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(reals), real=True)
    theirs.update(torch.from_numpy(samples), real=False)

    assert frechet_distance(moments(samples), moments(reals)) == pytest.approx(float(theirs.compute()), abs=1e-4)
