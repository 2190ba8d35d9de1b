import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process import Diffusion, DiffusionConfig, q_sample, q_step, split, target, to_uint8, to_unit_range
from diffusion.unet import UNet, UNetConfig

SCHEDULES = ["linear", "cosine"]
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


def process(schedule="linear", prediction="eps", num_timesteps=1000):
    return Diffusion(DiffusionConfig(num_timesteps=num_timesteps, schedule=schedule, prediction=prediction))


def one(value):
    return torch.tensor([[[[value]]]], dtype=torch.float64)


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def posterior_coefficients(diffusion, t):
    """What the posterior mean takes of x0 and of x_t, and its variance."""
    of_x0, variance = diffusion.posterior(t, one(1.0), one(0.0))
    of_x_t, _ = diffusion.posterior(t, one(0.0), one(1.0))
    return of_x0.item(), of_x_t.item(), variance


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_chain_has_the_mean_and_variance_of_the_closed_form_at_every_t(schedule):
    diffusion = process(schedule)
    mean, variance = one(1.0), one(0.0)
    chain, closed_form = [], []
    for beta, alpha_bar in zip(diffusion.betas, diffusion.alphas_cumprod, strict=True):
        mean = q_step(beta, mean, one(0.0))
        variance = q_step(beta, one(1.0), one(0.0)) ** 2 * variance + q_step(beta, one(0.0), one(1.0)) ** 2
        chain.append((mean.item(), variance.item()))
        closed_mean, closed_deviation = q_sample(alpha_bar, one(1.0), one(0.0)), q_sample(alpha_bar, one(0.0), one(1.0))
        closed_form.append((closed_mean.item(), closed_deviation.item() ** 2))

    torch.testing.assert_close(torch.tensor(chain).double(), torch.tensor(closed_form).double(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_walked_chain_and_a_jump_have_the_same_mean_and_variance(schedule):
    diffusion, num_walkers, x0 = process(schedule, num_timesteps=200), 20_000, 0.7
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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0, 1, 10, 100, 500, 999])
def test_the_derivative_of_x_t_by_x0_is_the_root_of_alpha_bar(schedule, t):
    diffusion = process(schedule)
    x0 = one(0.3).requires_grad_()
    walked = x0
    for step, beta in enumerate(diffusion.betas[: t + 1]):
        walked = q_step(beta, walked, randn(1, 1, 1, 1, seed=step))
    jumped = q_sample(diffusion.alphas_cumprod[t], x0, one(0.5))
    expected = diffusion.alphas_cumprod[t].sqrt().item()

    assert torch.autograd.grad(walked, x0)[0].item() == pytest.approx(expected, rel=1e-11)
    assert torch.autograd.grad(jumped, x0)[0].item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("schedule", "bound"), [("linear", 2.95e-5), ("cosine", 2e-9)])
def test_the_last_x_t_tells_almost_nothing_of_the_picture(schedule, bound):
    alpha_bar = process(schedule).alphas_cumprod[-1].item()
    brightest = 1.0
    nats = (alpha_bar * brightest**2 + (1 - alpha_bar) - 1 - math.log1p(-alpha_bar)) / 2

    assert nats / math.log(2) < bound  # KL(q(x_T | x0) || N(0, I)), bits a dimension


@pytest.mark.parametrize(("t", "value"), POSTERIOR_VARIANCES.items())
def test_posterior_variance_has_the_published_value(t, value):
    *_, variance = posterior_coefficients(process(), t)

    assert variance == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("t", [1, 500])
def test_posterior_mean_has_the_published_coefficients(t):
    of_x0, of_x_t, _ = posterior_coefficients(process(), t)

    assert of_x0 == pytest.approx(X0_COEFFICIENTS[t], rel=1e-9)
    assert of_x_t == pytest.approx(X_T_COEFFICIENTS[t], rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_at_the_first_timestep_the_posterior_is_the_picture_itself(schedule):
    x0, x_t = randn(2, 3, 4, 4, seed=0, dtype=torch.float32), randn(2, 3, 4, 4, seed=1, dtype=torch.float32)
    mean, variance = process(schedule).posterior(0, x0, x_t)

    assert torch.equal(mean, x0)
    assert variance == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_forward_undone_by_the_posterior_restores_the_law_of_the_step_before(schedule):
    diffusion = process(schedule)
    alpha_bar = diffusion.alphas_cumprod.tolist()
    rows = [posterior_coefficients(diffusion, t) for t in range(1, 1000)]
    means = [of_x0 + of_x_t * alpha_bar[t] ** 0.5 for t, (of_x0, of_x_t, _) in enumerate(rows, 1)]
    variances = [of_x_t**2 * (1 - alpha_bar[t]) + variance for t, (_, of_x_t, variance) in enumerate(rows, 1)]

    assert means == pytest.approx([value**0.5 for value in alpha_bar[:-1]], rel=1e-9)
    assert variances == pytest.approx([1 - value for value in alpha_bar[:-1]], rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_is_surer_than_the_step_forward(schedule):
    diffusion = process(schedule)
    variances = torch.tensor([posterior_coefficients(diffusion, t)[2] for t in range(1000)], dtype=torch.float64)

    assert (variances < diffusion.betas).all()
    assert (variances[1:] > 0).all()


@given(st.sampled_from(PREDICTIONS), st.sampled_from(SCHEDULES), st.integers(0, 999), st.integers(0, 2**32))
def test_split_inverts_target(prediction, schedule, t, seed):
    alpha_bar = process(schedule).alphas_cumprod[t].view(1, 1, 1, 1)
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


def test_the_tables_are_float64():
    diffusion = process()

    assert diffusion.betas.dtype == diffusion.alphas_cumprod.dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_noise_of_a_batch_is_as_exact_as_float32_allows(schedule):
    diffusion, t = process(schedule), torch.arange(1000)
    deviations = q_sample(diffusion.alpha_bar(t), torch.zeros(1000, 1, 1, 1), torch.ones(1000, 1, 1, 1)).flatten()

    torch.testing.assert_close(deviations.double(), (1 - diffusion.alphas_cumprod).sqrt(), rtol=1e-6, atol=0)


def test_a_network_that_starts_at_zero_has_an_eps_loss_of_one():
    model = UNet(UNetConfig(image_size=8, base_channels=8, norm_groups=4, channel_mults=(1, 2), num_res_blocks=1))
    diffusion = process()
    t = torch.arange(0, 1000, 4)
    eps = randn(250, 3, 8, 8, seed=0, dtype=torch.float32)
    x0 = to_unit_range(torch.randint(0, 256, (250, 3, 8, 8), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        losses = diffusion.loss(model, x0, t, eps, None)

    assert losses.mean().item() == pytest.approx(1, abs=5 * (2 / eps.numel()) ** 0.5)  # five standard errors
    assert losses.shape == (250,)
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_answer_has_no_loss(prediction):
    diffusion, t = process(prediction=prediction), torch.tensor([0, 10, 500, 999])
    x0, eps = (randn(4, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    answer = target(prediction, diffusion.alpha_bar(t), x0, eps)
    losses = diffusion.loss(lambda x_t, t, labels: answer, x0, t, eps, None)

    assert losses.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_sample_does_not_depend_on_the_others(prediction):
    diffusion, t = process(prediction=prediction), torch.tensor([3, 500, 998])
    x0, eps = (randn(3, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    together = diffusion.loss(lambda x_t, t, labels: x_t / 2, x0, t, eps, None)
    alone = [
        diffusion.loss(lambda x_t, t, labels: x_t / 2, x0[i : i + 1], t[i : i + 1], eps[i : i + 1], None)
        for i in range(3)
    ]

    torch.testing.assert_close(together, torch.cat(alone))


def test_the_network_is_shown_the_noisy_picture_its_timestep_and_label():
    diffusion, t, labels = process(), torch.tensor([0, 999]), torch.tensor([1, 4])
    x0, eps = (randn(2, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    shown = []

    def network(x_t, t, labels):
        shown.append((x_t, t, labels))
        return x_t

    diffusion.loss(network, x0, t, eps, labels)
    ((x_t, shown_t, shown_labels),) = shown

    assert torch.equal(x_t, q_sample(diffusion.alpha_bar(t), x0, eps))
    assert torch.equal(shown_t, t)
    assert torch.equal(shown_labels, labels)


def test_the_loss_of_a_half_precision_answer_is_taken_in_float32():
    diffusion, t = process(), torch.tensor([500])
    x0, eps = (randn(1, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    losses = diffusion.loss(lambda x_t, t, labels: torch.zeros_like(x_t, dtype=torch.bfloat16), x0, t, eps, None)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, eps.square().mean(dim=(1, 2, 3)))


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
        ({"num_timesteps": 0}, "num_timesteps must be at least 1, got 0"),
        ({"num_timesteps": -5}, "num_timesteps must be at least 1, got -5"),
        ({"num_timesteps": 20}, "num_timesteps=20; use more timesteps"),
        ({"schedule": "sigmoid"}, "schedule must be one of linear, cosine, got 'sigmoid'"),
        ({"prediction": "score"}, "prediction must be one of eps, x0, v, got 'score'"),
    ],
)
def test_an_impossible_process_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**options)
