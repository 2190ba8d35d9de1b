import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from diffusion.metrics import Moments, frechet_distance, moments, nearest, thumbnails

SEEDS = st.integers(0, 2**32)


def gaussian(seed, dimensions=6, rank=20):
    """Moments of a few correlated vectors; singular where the rank is below the dimensions."""
    rng = np.random.default_rng(seed)
    return moments(
        rng.standard_normal((rank, dimensions)) @ rng.standard_normal((dimensions, dimensions)) + rng.normal()
    )


def diagonal(mean, variances):
    return Moments(2, np.asarray(mean, dtype=float), np.diag(variances).astype(float))


def pixels(num_images, seed=0, side=8, channels=3):
    shape = (num_images, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pairwise(queries, references):
    return cdist(queries.flatten(1).double() / 255, references.flatten(1).double() / 255)


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
    turned = [Moments(m.num_samples, turn @ m.mean, turn @ m.covariance @ turn.T) for m in (a, b)]

    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_moments_are_mean_and_covariance(dimensions):
    features = np.random.default_rng(0).normal(size=(100, dimensions))
    found = moments(features)
    centred = features - features.mean(axis=0)

    np.testing.assert_allclose(found.mean, features.sum(axis=0) / 100)
    np.testing.assert_allclose(found.covariance, centred.T @ centred / 99)
    assert found.num_samples == 100


@pytest.mark.parametrize("num_samples", [0, 1])
def test_fewer_than_two_samples_have_no_covariance(num_samples):
    with pytest.raises(ValueError, match=f"a covariance needs at least 2 samples, got {num_samples}"):
        moments(np.zeros((num_samples, 3)))


@pytest.mark.parametrize(("side", "channels", "width"), [(32, 3, 192), (28, 1, 64), (8, 1, 64), (4, 3, 48), (1, 1, 1)])
def test_a_thumbnail_is_8_by_8_or_the_picture_itself_if_it_is_smaller(side, channels, width):
    features = thumbnails(pixels(5, side=side, channels=channels))

    assert features.shape == (5, width)
    assert features.dtype == np.float64
    assert 0 <= features.min() <= features.max() <= 1


def test_a_thumbnail_averages_blocks_of_pixels():
    images = pixels(3, side=16, channels=1)
    blocks = images.numpy().reshape(3, 8, 2, 8, 2).mean(axis=(2, 4)) / 255

    np.testing.assert_allclose(thumbnails(images), blocks.reshape(3, 64))


def test_small_pictures_are_not_averaged():
    images = pixels(3, side=8)

    np.testing.assert_allclose(thumbnails(images), images.numpy().reshape(3, -1) / 255)


@pytest.mark.parametrize(("num_queries", "num_references"), [(1, 1), (3, 10), (40, 60), (600, 50)])
def test_the_nearest_is_the_one_that_brute_force_finds(num_queries, num_references):
    queries, references = pixels(num_queries, seed=1), pixels(num_references, seed=2)
    distances, indices = nearest(queries, references)
    expected = pairwise(queries, references)

    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-4)
    assert np.array_equal(indices, expected.argmin(axis=1))


def test_the_nearest_of_a_copy_is_its_original():
    references = pixels(300)
    _, indices = nearest(references[100:200], references)

    assert indices.tolist() == list(range(100, 200))


@pytest.mark.parametrize("side", [8, 32])
def test_the_distance_of_a_copy_is_zero(side):
    references = pixels(60, side=side)
    distances, _ = nearest(references, references)

    assert distances.max() < 1e-6


def test_a_copy_with_one_level_of_one_pixel_changed_is_a_255th_away():
    references = pixels(60, side=32)
    queries = references.clone()
    queries[:, 0, 0, 0] ^= 1
    distances, _ = nearest(queries, references)

    np.testing.assert_allclose(distances, 1 / 255, rtol=1e-3)
