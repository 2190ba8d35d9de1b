import numpy as np

from diffusion.metrics.bootstrap import interval
from diffusion.metrics.frechet import frechet_distance, moments


def test_of_a_mean_it_is_two_standard_errors_to_either_side():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = interval(lambda indices: float(values[indices].mean()), 400, draws=1000)

    assert found.value == values.mean()
    np.testing.assert_allclose([found.value - found.low, found.high - found.value], 1.96 * 2 / 20, rtol=0.15)


def test_it_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(5, 2, 100)
        found = interval(lambda indices, values=values: float(values[indices].mean()), 100)
        hits += found.low <= 5 <= found.high

    assert 0.88 <= hits / 200 <= 0.99


def test_it_is_always_the_same():
    values = np.random.default_rng(0).normal(size=50)

    def mean(indices):
        return float(values[indices].mean())

    assert interval(mean, 50) == interval(mean, 50)


def test_a_distance_lies_in_its_interval_although_repetitions_make_it_larger():
    rng = np.random.default_rng(0)
    samples, reals = rng.normal(size=(100, 20)), moments(rng.normal(size=(100, 20)))
    found = interval(lambda indices: frechet_distance(moments(samples[indices]), reals), 100, draws=50)

    assert found.low < found.value < found.high
