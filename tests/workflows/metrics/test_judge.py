"""What the judge says of features that are known to be good or bad."""

import numpy as np
import pytest

from diffusion.metrics.frechet import moments
from workflows.metrics.features import SetFeatures
from workflows.metrics.judge import Neighbours, distances, memorisation
from workflows.metrics.lines import metric_lines
from workflows.metrics.neighbours import Nearest

NO_LABELS = np.full(500, -1)


def given(num, seed=0, mean=0.0, logits=None):
    vectors = np.random.default_rng(seed).normal(mean, 1, (num, 5))
    return SetFeatures(moments(vectors), vectors, logits)


def sure(labels, num_classes=3):
    return 20 * np.eye(num_classes)[labels]


def test_samples_of_the_same_law_are_about_as_far_as_held_out_pictures_and_others_farther():
    known, held_out = given(1000), given(500, seed=1)
    same, other = (distances("k", given(500, seed=2, mean=mean), known, held_out, NO_LABELS) for mean in (0, 1))

    assert same["frechet_k"] < 3 * same["frechet_k_held_out"]
    assert other["frechet_k"] > 20 * other["frechet_k_held_out"]
    assert abs(same["kernel_k"]) < 4 * same["kernel_k_error"]
    assert other["kernel_k"] > 10 * other["kernel_k_error"]
    assert same["precision_k"] > other["precision_k"]


@pytest.mark.parametrize("name", ["frechet_k", "precision_k", "recall_k"])
def test_a_metric_lies_in_its_interval(name):
    metrics = distances("k", given(300, seed=1, mean=0.3), given(400), None, NO_LABELS)

    assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]


def test_a_distance_is_of_all_samples_though_only_some_vectors_are_kept():
    known, whole = given(500), given(500, seed=1)
    some = SetFeatures(whole.moments, whole.vectors[:200], None)
    of_whole, of_some = (distances("k", drawn, known, None, NO_LABELS) for drawn in (whole, some))

    assert of_some["frechet_k"] == of_whole["frechet_k"]
    assert of_some["frechet_k_low"] < of_some["frechet_k"] < of_some["frechet_k_high"]
    assert of_some["frechet_k_high"] - of_some["frechet_k_low"] > of_whole["frechet_k_high"] - of_whole["frechet_k_low"]


@pytest.mark.parametrize(("num", "missing"), [(1, "frechet_k"), (3, "precision_k"), (19, "kernel_k")])
def test_what_too_few_samples_allow_is_left_out(num, missing):
    assert missing not in distances("k", given(num, seed=1), given(500), None, NO_LABELS)
    assert missing in distances("k", given(num + 1, seed=1), given(500), None, NO_LABELS)


def test_a_class_that_is_never_drawn_right_is_told():
    asked = np.arange(300) % 3
    seen = np.where(asked == 1, 0, asked)
    metrics = distances("dataset", given(300, logits=sure(seen)), given(400), None, asked)

    assert metrics["label_agreement_dataset"] == pytest.approx(2 / 3)
    assert metrics["label_agreement_dataset_worst"] == 0
    assert metrics["inception_score_dataset"] < 2


def test_all_classes_drawn_surely_give_the_highest_inception_score():
    asked = np.arange(300) % 3
    metrics = distances("dataset", given(300, logits=sure(asked)), given(400), None, asked)

    assert metrics["inception_score_dataset"] == pytest.approx(3, rel=1e-3)
    assert metrics["label_agreement_dataset_worst"] == 1


def test_the_classes_of_another_net_are_not_the_datas():
    asked = np.arange(300) % 3
    metrics = distances("inception", given(300, logits=sure(asked, 8)), given(400), None, asked)

    assert "label_agreement_inception" not in metrics
    assert metrics["inception_score_inception"] > 2.9


def near(distances, labels=None):
    distances = np.asarray(distances, np.float32)
    shown = np.zeros((len(distances), 1, 2, 2), np.uint8)
    return Nearest(distances, np.zeros(len(distances), np.int64) if labels is None else labels, shown, 100)


def test_copies_are_near_and_have_the_label_asked_for():
    asked = np.arange(100) % 3
    found = memorisation(Neighbours(near(np.zeros(100), asked), near(np.full(50, 2.0))), asked)

    assert found["nearest_distance_ratio"] == 0
    assert found["nearest_label_agreement"] == 1


def test_what_is_as_far_as_held_out_pictures_is_no_copy():
    draws = np.random.default_rng(0)
    sides = [near(draws.normal(2, 0.2, 500)) for _ in range(2)]
    found = memorisation(Neighbours(*sides), NO_LABELS)

    assert found["nearest_distance_ratio_low"] < 1 < found["nearest_distance_ratio_high"]
    assert "nearest_label_agreement" not in found


def test_people_read_a_line_of_every_metric_that_is_there():
    asked = np.arange(300) % 3
    metrics = distances("dataset", given(300, logits=sure(asked)), given(400), given(50), asked)
    metrics |= {
        "bits_per_dim": 3.2,
        "n": 300.0,
        "bits_per_dim_n": 50.0,
        "bits_per_dim_low": 3.1,
        "bits_per_dim_high": 3.3,
    }
    lines = metric_lines(metrics)

    assert len(lines) == 7
    assert lines[-1] == "3.200 bits/dim of held-out pictures; others: 3.100 to 3.300; n = 50"
    assert not any("KIND" in line or "NAME" in line for line in lines)
