import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from diffusion.metrics.pixels import nearest, thumbnails


def pixels(num_images, seed=0, side=8, channels=3):
    shape = (num_images, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pairwise(queries, references):
    return cdist(queries.flatten(1).double() / 255, references.flatten(1).double() / 255)


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
