import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.ema import power
from diffusion.train_config import TrainConfig, learning_rate, resolve_precision


def train_config(**options):
    return TrainConfig(**{"global_batch": 16, "num_lanes": 8} | options)


@given(st.integers(0, 50), st.integers(1, 200))
def test_the_learning_rate_grows_evenly_to_its_full_height(warmup_steps, steps):
    config = train_config(lr=3e-4, warmup_steps=warmup_steps, steps=steps)
    rates = [learning_rate(step, config) for step in range(steps)]
    expected = [3e-4 * (step + 1) / warmup_steps if step < warmup_steps else 3e-4 for step in range(steps)]

    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_falls_from_its_full_height_over_the_half_to_nearly_nothing(decay):
    config = train_config(lr=1e-3, warmup_steps=10, steps=110, decay=decay)
    rates = [learning_rate(step, config) for step in range(10, 110)]

    assert rates[0] == pytest.approx(1e-3)
    assert rates[50] == pytest.approx(0.5e-3)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] <= 1e-3 / 100 + 1e-12


def test_a_linear_decay_is_a_line_and_a_cosine_half_a_wave():
    rates = {
        decay: [learning_rate(step, train_config(lr=1, warmup_steps=0, steps=100, decay=decay)) for step in range(100)]
        for decay in ("linear", "cosine")
    }

    assert rates["linear"] == pytest.approx([1 - step / 100 for step in range(100)])
    assert rates["cosine"] == pytest.approx([math.cos(math.pi * step / 200) ** 2 for step in range(100)])


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_given_precision_is_used_on_any_device(precision, device):
    assert resolve_precision(precision, torch.device(device)) == precision


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads the processor's abilities from /proc/cpuinfo")
def test_auto_is_bf16_on_a_processor_that_multiplies_it():
    flags = Path("/proc/cpuinfo").read_text().split()

    assert resolve_precision("auto", torch.device("cpu")) == ("bf16" if "avx512_bf16" in flags else "fp32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0}, "lr must be above 0 and finite, got 0"),
        ({"lr": math.nan}, "lr must be above 0 and finite, got nan"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"decay": "step"}, "decay must be one of constant, linear, cosine, got 'step'"),
        ({"grad_clip": 0}, "grad_clip must be above 0, got 0"),
        ({"ema_decays": ()}, "ema_decays or ema_stds must name at least one average, got none"),
        ({"ema_stds": (0.1, 0.3)}, r"ema std must lie in \(0, 0.289\), got 0.3"),
        ({"on_nan": "ignore"}, "on_nan must be one of stop, skip, got 'ignore'"),
        ({"ema_decays": (0.9, 1.0)}, r"ema decay must lie in \[0, 1\), got 1.0"),
        ({"label_dropout": 1}, r"label_dropout must lie in \[0, 1\), got 1"),
        ({"label_dropout": -0.1}, r"label_dropout must lie in \[0, 1\), got -0.1"),
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16, got 'fp16'"),
        ({"global_batch": 100}, "global_batch must be a positive multiple of num_lanes=64, got 100"),
    ],
)
def test_an_impossible_config_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_the_averages_are_those_by_decay_and_then_those_by_width():
    profiles = TrainConfig(ema_decays=(0.5, 0.9), ema_stds=(0.05, 0.1)).ema_profiles()

    assert [profile(999) for profile in profiles] == [0.5, 0.9, power(0.05)(999), power(0.1)(999)]


def test_averages_by_width_alone_are_enough():
    assert len(TrainConfig(ema_decays=(), ema_stds=(0.1,)).ema_profiles()) == 1
