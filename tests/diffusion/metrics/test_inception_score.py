import numpy as np
import pytest
import torch
from given_features import Given
from torchmetrics.image.inception import InceptionScore

from diffusion.metrics.inception_score import inception_score, score_of_rows


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_torchmetrics_score():
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (300, 10)))
    theirs = InceptionScore(feature=Given(10), splits=1).set_dtype(torch.float64)
    theirs.update(logits)

    assert inception_score(logits) == pytest.approx(float(theirs.compute()[0]), abs=1e-4)


def test_sure_and_of_all_classes_alike_it_is_their_number():
    assert inception_score(1000 * torch.eye(7).repeat(3, 1)) == pytest.approx(7)


@pytest.mark.parametrize("logits", [torch.zeros(50, 7), 1000 * torch.eye(7)[[2] * 50]])
def test_unsure_or_all_of_one_class_it_is_one(logits):
    assert inception_score(logits) == pytest.approx(1)


def test_nothing_has_no_score():
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        inception_score(torch.zeros(0, 7))


def test_the_score_of_some_rows_is_that_of_their_logits():
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (300, 10)))
    rows = torch.from_numpy(np.random.default_rng(1).integers(300, size=200))

    assert score_of_rows(logits)(rows) == pytest.approx(inception_score(logits[rows]), rel=1e-12)
