import numpy as np
import pytest
import torch

from diffusion.metrics.features import Features, in_batches, thumbnail_features
from diffusion.metrics.pixels import thumbnails


def pictures(num):
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(num, 3, 16, 16), dtype=np.uint8))


def test_thumbnails_are_features_without_classes():
    vectors, logits = thumbnail_features(pictures(5))

    assert np.array_equal(vectors.numpy(), thumbnails(pictures(5)))
    assert logits is None


@pytest.mark.parametrize("num", [0, 1, 6, 7, 8, 20])
@pytest.mark.parametrize("has_classes", [True, False])
def test_a_net_is_asked_for_a_batch_at_a_time_and_nothing_is_lost(num, has_classes):
    sizes = []

    def net(images):
        sizes.append(len(images))
        vectors = images.float().flatten(1)
        return Features(vectors, vectors[:, :10] if has_classes else None)

    found = in_batches(net, pictures(num), 7)

    assert max(sizes) <= 7
    assert torch.equal(found.vectors, pictures(num).float().flatten(1))
    assert (found.logits is not None) == has_classes
    if has_classes:
        assert torch.equal(found.logits, found.vectors[:, :10])
