import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.likelihood import prior_bits
from diffusion.process import (
    CLEAN,
    LOSSES_OF,
    Diffusion,
    DiffusionConfig,
    Loss,
    posterior,
    q_sample,
    q_step,
    split,
    target,
    to_uint8,
    to_unit_range,
)

PROCESSES = {
    "linear": {},
    "cosine": {"schedule": "cosine"},
    "sigmoid": {"schedule": "sigmoid"},
    "zero_terminal_snr": {"zero_terminal_snr": True, "prediction": "v"},
}
PREDICTIONS = ["eps", "x0", "v"]
POSTERIOR_VARIANCES = {
    1: 5.4531876613021935e-05,
    2: 8.548911523090944e-05,
    100: 0.002054553529969665,
    487: 0.00979157198569004,
    999: 0.01999998352656061,
}
X0_COEFFICIENTS = {1: 0.5452914995102903, 500: 0.003058057075629619}
X_T_COEFFICIENTS = {1: 0.4547084989905303, 500: 0.9941043507567258}


def process(name="linear", **options):
    return Diffusion(DiffusionConfig(**PROCESSES[name] | options))


def one(value):
    return torch.tensor([[[[value]]]], dtype=torch.float64)


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def around(diffusion, t):
    """alpha_bar of t and of the step before it."""
    return diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t - 1)


def posterior_coefficients(diffusion, t):
    """What the posterior mean takes of x0 and of x_t, and its variance."""
    of_x0, variance = posterior(*around(diffusion, t), one(1.0), one(0.0))
    of_x_t, _ = posterior(*around(diffusion, t), one(0.0), one(1.0))
    return of_x0.item(), of_x_t.item(), variance.item()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_chain_has_the_mean_and_variance_of_the_closed_form_at_every_t(name):
    diffusion = process(name)
    mean, variance = one(1.0), one(0.0)
    chain, closed_form = [], []
    for beta, alpha_bar in zip(diffusion.betas, diffusion.alphas_cumprod, strict=True):
        mean = q_step(beta, mean, one(0.0))
        variance = q_step(beta, one(1.0), one(0.0)) ** 2 * variance + q_step(beta, one(0.0), one(1.0)) ** 2
        chain.append((mean.item(), variance.item()))
        closed_mean, closed_deviation = q_sample(alpha_bar, one(1.0), one(0.0)), q_sample(alpha_bar, one(0.0), one(1.0))
        closed_form.append((closed_mean.item(), closed_deviation.item() ** 2))

    torch.testing.assert_close(torch.tensor(chain).double(), torch.tensor(closed_form).double(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_walked_chain_and_a_jump_have_the_same_mean_and_variance(name):
    diffusion, num_walkers, x0 = process(name, num_timesteps=200), 20_000, 0.7
    draws = torch.Generator().manual_seed(0)
    x = torch.full((num_walkers,), x0, dtype=torch.float64)
    means, variances = [], []
    for beta in diffusion.betas:
        x = q_step(beta, x, torch.randn(num_walkers, generator=draws, dtype=torch.float64))
        means.append(x.mean())
        variances.append(x.var())
    alpha_bar = diffusion.alphas_cumprod
    jumped = q_sample(alpha_bar, torch.tensor(x0).double(), torch.zeros(()).double())
    mean_errors = (torch.stack(means) - jumped) / ((1 - alpha_bar) / num_walkers).sqrt()
    variance_errors = (torch.stack(variances) / (1 - alpha_bar) - 1) / (2 / num_walkers) ** 0.5

    assert mean_errors.abs().max() < 5  # standard errors, over all 200 timesteps
    assert variance_errors.abs().max() < 5


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("t", [0, 1, 10, 100, 500, 999])
def test_the_derivative_of_x_t_by_x0_is_the_root_of_alpha_bar(name, t):
    diffusion = process(name)
    x0 = one(0.3).requires_grad_()
    walked = x0
    for step, beta in enumerate(diffusion.betas[: t + 1]):
        walked = q_step(beta, walked, randn(1, 1, 1, 1, seed=step))
    jumped = q_sample(diffusion.alphas_cumprod[t], x0, one(0.5))
    expected = diffusion.alphas_cumprod[t].sqrt().item()

    assert torch.autograd.grad(walked, x0)[0].item() == pytest.approx(expected, rel=1e-11)
    assert torch.autograd.grad(jumped, x0)[0].item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("name", "bits"), [("linear", 2.911e-5), ("cosine", 1.8e-9), ("zero_terminal_snr", 0)])
def test_the_last_x_t_tells_almost_nothing_of_the_brightest_picture(name, bits):
    told = prior_bits(process(name), torch.ones(2, 3, 4, 4))

    assert told.tolist() == pytest.approx([bits, bits], rel=0.05, abs=1e-10)


@given(st.sampled_from(sorted(PROCESSES)), st.floats(-1, 1))
def test_the_last_x_t_tells_no_more_of_any_other_picture(name, x0):
    told = prior_bits(process(name), torch.full((1, 1, 2, 2), x0)).item()

    assert -1e-15 <= told <= {"linear": 2.92e-5}.get(name, 1e-6)


@pytest.mark.parametrize(("t", "value"), POSTERIOR_VARIANCES.items())
def test_posterior_variance_has_the_published_value(t, value):
    *_, variance = posterior_coefficients(process(), t)

    assert variance == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("t", [1, 500])
def test_posterior_mean_has_the_published_coefficients(t):
    of_x0, of_x_t, _ = posterior_coefficients(process(), t)

    assert of_x0 == pytest.approx(X0_COEFFICIENTS[t], rel=1e-9)
    assert of_x_t == pytest.approx(X_T_COEFFICIENTS[t], rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_at_the_first_timestep_the_posterior_is_the_picture_itself(name):
    x0, x_t = randn(2, 3, 4, 4, seed=0, dtype=torch.float32), randn(2, 3, 4, 4, seed=1, dtype=torch.float32)
    mean, variance = posterior(*around(process(name), 0), x0, x_t)

    assert torch.equal(mean, x0)
    assert variance == 0


@given(st.sampled_from(sorted(PROCESSES)), st.data())
def test_noise_and_the_posterior_of_any_earlier_step_have_one_joint_law(name, data):
    diffusion = process(name)
    t = data.draw(st.integers(1, 999))
    alpha_bar, previous = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(data.draw(st.integers(0, t - 1)))
    of_x0, variance = posterior(alpha_bar, previous, one(1.0), one(0.0))
    of_x_t, _ = posterior(alpha_bar, previous, one(0.0), one(1.0))

    # x_t as from x0, then x_s as from both: its mean, its variance and its covariance with x_t, walked forward
    assert (of_x0 + of_x_t * alpha_bar.sqrt()).item() == pytest.approx(previous.sqrt().item(), rel=1e-9)
    assert (of_x_t**2 * (1 - alpha_bar) + variance).item() == pytest.approx(1 - previous.item(), rel=1e-9)
    assert (of_x_t * (1 - alpha_bar)).item() == pytest.approx(
        ((alpha_bar / previous).sqrt() * (1 - previous)).item(), rel=1e-9
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_is_surer_than_the_step_forward(name):
    diffusion = process(name)
    variances = torch.tensor([posterior_coefficients(diffusion, t)[2] for t in range(1000)], dtype=torch.float64)

    assert (variances <= diffusion.betas).all()
    assert (variances[:-1] < diffusion.betas[:-1]).all()
    assert (variances[1:] > 0).all()


def step_variances(t, previous, fraction=None, name="linear", **options):
    diffusion = process(name, **options)
    around = diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(previous)
    return diffusion.step_log_variance(*around, fraction).exp()


@given(st.sampled_from(sorted(PROCESSES)), st.data())
def test_a_fixed_variance_is_that_of_the_posterior_or_of_the_step_forward(name, data):
    t = data.draw(st.integers(1, 999))
    s = data.draw(st.integers(0, t - 1))
    diffusion = process(name)
    beta_of_jump = 1 - (1 - diffusion.betas[s + 1 : t + 1]).prod()
    _, of_posterior = posterior(diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(s), one(0.0), one(0.0))
    small = step_variances(t, s, name=name, variance="fixed_small")
    large = step_variances(t, s, name=name, variance="fixed_large")

    assert small.item() == pytest.approx(of_posterior.item(), rel=1e-9)
    assert large.item() == pytest.approx(beta_of_jump.item(), rel=1e-9)


@given(st.floats(-1, 2), st.integers(1, 999))
def test_a_learned_variance_lies_between_the_fixed_ones_in_proportion_to_its_logarithm(fraction, t):
    small = step_variances(t, t - 1, variance="fixed_small").item()
    large = step_variances(t, t - 1, variance="fixed_large").item()
    learned = step_variances(t, t - 1, one(fraction), variance="learned", loss="hybrid").item()

    assert learned == pytest.approx(large**fraction * small ** (1 - fraction), rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_last_step_back_borrows_the_variance_of_the_one_before(name):
    last = step_variances(0, CLEAN, name=name).item()

    assert last == pytest.approx(posterior_coefficients(process(name), 1)[2], rel=1e-9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_only_step_back_of_a_process_of_one_step_has_its_beta_for_variance(variance):
    only = step_variances(0, CLEAN, name="cosine", num_timesteps=1, variance=variance).item()

    assert only == pytest.approx(0.999, rel=1e-12)


@given(st.sampled_from(PREDICTIONS), st.sampled_from(sorted(PROCESSES)[:3]), st.integers(0, 999), st.integers(0, 2**32))
def test_split_inverts_target(prediction, name, t, seed):
    alpha_bar = process(name).alphas_cumprod[t].view(1, 1, 1, 1)
    x0, eps = randn(2, 3, 4, 4, seed=seed), randn(2, 3, 4, 4, seed=seed + 1)
    x_t = q_sample(alpha_bar, x0, eps)
    x0_hat, eps_hat = split(prediction, alpha_bar, x_t, target(prediction, alpha_bar, x0, eps))
    ill_conditioned = 1e-14 * (1 + 1 / alpha_bar.sqrt().item() + 1 / (1 - alpha_bar).sqrt().item())

    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=10 * ill_conditioned)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=10 * ill_conditioned)


@given(st.sampled_from(PREDICTIONS), st.integers(0, 900), st.integers(0, 2**32))
def test_the_two_parts_of_any_answer_mix_back_to_x_t(prediction, t, seed):
    alpha_bar = process().alphas_cumprod[t].view(1, 1, 1, 1)
    x_t, output = randn(2, 3, 4, 4, seed=seed), randn(2, 3, 4, 4, seed=seed + 1)
    x0_hat, eps_hat = split(prediction, alpha_bar, x_t, output)

    torch.testing.assert_close(q_sample(alpha_bar, x0_hat, eps_hat), x_t, rtol=0, atol=1e-11)


def test_v_is_the_derivative_of_x_t_along_the_circle():
    angle = torch.tensor([[[[0.7]]]], dtype=torch.float64, requires_grad=True)
    x0, eps = randn(1, 1, 1, 1, seed=0), randn(1, 1, 1, 1, seed=1)
    x_t = angle.cos() * x0 + angle.sin() * eps
    v = target("v", angle.detach().cos() ** 2, x0, eps)

    torch.testing.assert_close(v, torch.autograd.grad(x_t.sum(), angle)[0])


def test_gathered_alpha_bar_is_the_table_at_t_shaped_to_multiply_pictures():
    diffusion, t = process(), torch.tensor([999, 0, 500, 500])
    alpha_bar = diffusion.alpha_bar(t)

    assert alpha_bar.shape == (4, 1, 1, 1)
    torch.testing.assert_close(alpha_bar.flatten().double(), diffusion.alphas_cumprod[t], rtol=1e-7, atol=0)


def test_before_the_first_timestep_all_of_the_picture_is_there():
    diffusion = process()

    assert diffusion.alpha_bar(torch.tensor([CLEAN, 0, CLEAN])).flatten().tolist() == [1, 0.9999, 1]
    assert diffusion.alpha_bar_at(CLEAN) == 1
    assert diffusion.alpha_bar_at(0) == diffusion.alphas_cumprod[0]


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([torch.float32, torch.float64]), st.data()
)
def test_noise_split_off_again_leaves_a_picture_of_the_same_shape_and_dtype(b, c, side, dtype, data):
    num_timesteps = data.draw(st.integers(1, 300))
    diffusion = process("cosine", num_timesteps=num_timesteps)
    t = torch.tensor(data.draw(st.lists(st.integers(0, num_timesteps - 1), min_size=b, max_size=b)))
    x0, eps = (randn(b, c, side, side, seed=seed, dtype=dtype) for seed in (0, 1))
    x_t = q_sample(diffusion.alpha_bar(t), x0, eps)
    parts = split("v", diffusion.alpha_bar(t), x_t, target("v", diffusion.alpha_bar(t), x0, eps))

    for part, truth in zip(parts, (x0, eps), strict=True):
        torch.testing.assert_close(part, truth, rtol=0, atol=1e-5)


def test_the_tables_are_float64():
    diffusion = process()

    assert diffusion.betas.dtype == diffusion.alphas_cumprod.dtype == torch.float64


@pytest.mark.parametrize("name", PROCESSES)
def test_the_noise_of_a_batch_is_as_exact_as_float32_allows(name):
    diffusion, t = process(name), torch.arange(1000)
    deviations = q_sample(diffusion.alpha_bar(t), torch.zeros(1000, 1, 1, 1), torch.ones(1000, 1, 1, 1)).flatten()

    torch.testing.assert_close(deviations.double(), (1 - diffusion.alphas_cumprod).sqrt(), rtol=1e-6, atol=0)


def test_every_pixel_value_survives_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = to_unit_range(pixels)

    assert torch.equal(to_uint8(x), pixels)
    assert x.dtype == torch.float32
    assert x.min() == -1
    assert x.max() == 1


@given(st.integers(0, 255), st.floats(-0.49, 0.49))
def test_a_float_becomes_the_nearest_pixel(pixel, offset):
    x = torch.full((1, 1, 1, 1), (pixel + offset) / 127.5 - 1)

    assert to_uint8(x).item() == pixel


@pytest.mark.parametrize(
    ("x", "pixel"), [(-1.5, 0), (-1e9, 0), (1.01, 255), (1e9, 255), (-math.inf, 0), (math.inf, 255)]
)
def test_floats_outside_the_range_are_clipped(x, pixel):
    pixels = to_uint8(torch.full((1, 1, 1, 1), x))

    assert pixels.item() == pixel
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps must be at least 1 and at most 1000000, got 0"),
        ({"num_timesteps": -5}, "num_timesteps must be at least 1 and at most 1000000, got -5"),
        ({"num_timesteps": 10**12}, "num_timesteps must be at least 1 and at most 1000000, got 1000000000000"),
        ({"num_timesteps": 20}, "num_timesteps=20; use more timesteps"),
        ({"schedule": "square"}, "schedule must be one of linear, cosine, sigmoid, got 'square'"),
        ({"prediction": "score"}, "prediction must be one of eps, x0, v, got 'score'"),
        ({"variance": "big"}, "variance must be one of fixed_small, fixed_large, learned, got 'big'"),
        ({"loss": "l1"}, "loss must be one of simple, min_snr, vlb, hybrid, got 'l1'"),
        ({"snr_gamma": 0}, "snr_gamma must be above 0 and finite, got 0"),
        ({"snr_gamma": -1.0}, "snr_gamma must be above 0 and finite, got -1.0"),
        ({"snr_gamma": math.nan}, "snr_gamma must be above 0 and finite, got nan"),
        ({"snr_gamma": math.inf}, "snr_gamma must be above 0 and finite, got inf"),
        ({"zero_terminal_snr": True}, "prediction must be x0 or v with zero_terminal_snr, got eps"),
        (
            {"zero_terminal_snr": True, "prediction": "v", "loss": "min_snr"},
            "loss must not be min_snr with zero_terminal_snr",
        ),
        (
            {"zero_terminal_snr": True, "prediction": "v", "schedule": "cosine", "num_timesteps": 1},
            "num_timesteps must be at least 2 for a zero terminal SNR, got 1",
        ),
    ],
)
def test_an_impossible_process_is_refused_in_one_line_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        DiffusionConfig(**options)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("variance", LOSSES_OF)
@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_loss_goes_with_a_variance_that_it_teaches_or_else_is_refused(loss, variance):
    if loss in {"learned": {"vlb", "hybrid"}}.get(variance, {"simple", "min_snr", "vlb"}):
        assert DiffusionConfig(loss=loss, variance=variance).loss == loss
    else:
        with pytest.raises(ValueError, match=f"loss must be one of .* with variance={variance}, got '{loss}'"):
            DiffusionConfig(loss=loss, variance=variance)
