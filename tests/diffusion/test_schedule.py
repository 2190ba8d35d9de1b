import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion.schedule import SCHEDULES, alphas_cumprod, checked, cosine_betas, linear_betas

LINEAR_ALPHAS_CUMPROD = {
    0: 0.9999,
    1: 0.9997800920720721,
    10: 0.997806572507846,
    100: 0.8951415908975365,
    250: 0.5214230306185275,
    500: 0.07779665836502389,
    750: 0.003300158361569426,
    999: 4.035829765375676e-05,
}
COSINE_ALPHAS_CUMPROD = {0: 0.999958715775178, 500: 0.49228517244880304}


def snr(betas):
    alpha_bar = alphas_cumprod(betas)
    return alpha_bar / (1 - alpha_bar)


@pytest.mark.parametrize(("t", "value"), LINEAR_ALPHAS_CUMPROD.items())
def test_linear_schedule_leaves_the_published_share_of_the_picture(t, value):
    alpha_bar = alphas_cumprod(linear_betas(1000))[t].item()

    assert alpha_bar == pytest.approx(value, rel=1e-12)


def test_linear_shares_have_the_published_sum():
    total = alphas_cumprod(linear_betas(1000)).sum().item()

    assert total == pytest.approx(275.51323339680613, rel=1e-13)


@pytest.mark.parametrize(("t", "value"), COSINE_ALPHAS_CUMPROD.items())
def test_cosine_schedule_leaves_the_published_share_of_the_picture(t, value):
    alpha_bar = alphas_cumprod(cosine_betas(1000))[t].item()

    assert alpha_bar == pytest.approx(value, rel=1e-12)


def test_cosine_betas_start_at_the_published_value_and_end_at_the_cap():
    betas = cosine_betas(1000)

    assert betas[0].item() == pytest.approx(4.128422482196914e-05, rel=1e-9)
    assert betas[-1].item() == 0.999


def test_cosine_shares_follow_the_squared_cosine_wherever_no_beta_is_capped():
    alpha_bar = alphas_cumprod(cosine_betas(200))[:-1]
    times = (torch.arange(200, dtype=torch.float64) + 1)[:-1] / 200
    curve = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    torch.testing.assert_close(alpha_bar, curve, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("limit", "first"), [(5, 130), (1, 259)])
def test_linear_snr_falls_below_a_limit_at_the_published_timestep(limit, first):
    below = (snr(linear_betas(1000)) < limit).nonzero()

    assert below[0].item() == first


@pytest.mark.parametrize("num_timesteps", [50, 100, 1000, 4000])
def test_linear_schedule_ends_in_noise_for_any_length(num_timesteps):
    last = snr(linear_betas(num_timesteps))[-1].item()

    assert last < 5e-5


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [21, 50, 1000, 4000])
def test_betas_are_float64_grow_and_lie_strictly_between_0_and_1(name, num_timesteps):
    betas = SCHEDULES[name](num_timesteps)

    assert betas.dtype == torch.float64
    assert betas.shape == (num_timesteps,)
    assert (betas.diff() >= 0).all()
    assert 0 < betas[0] < betas[-1] < 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_leaves_less_of_the_picture(name):
    alpha_bar = alphas_cumprod(SCHEDULES[name](1000))

    assert (alpha_bar.diff() < 0).all()
    assert (alpha_bar > 0).all()


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_betas_equal_those_of_diffusers(name, theirs):
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)

    torch.testing.assert_close(SCHEDULES[name](1000), scheduler.betas.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "num_timesteps",
    [2, 20],
)
def test_a_linear_schedule_too_short_for_its_betas_is_refused_with_its_length(num_timesteps):
    with pytest.raises(ValueError, match=rf"betas must lie in \(0, 1\).*num_timesteps={num_timesteps};"):
        linear_betas(num_timesteps)


def test_the_shortest_cosine_schedule_has_one_step():
    betas = cosine_betas(1)

    assert betas.tolist() == [0.999]


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "cosine",
    ],
)
def test_a_schedule_of_no_steps_is_refused(name):
    with pytest.raises(ValueError, match="num_timesteps must be at least 1, got 0"):
        SCHEDULES[name](0)


@pytest.mark.parametrize("impossible", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_table_with_an_impossible_beta_is_refused(impossible):
    betas = torch.tensor([0.1, impossible], dtype=torch.float64)

    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        checked(betas)
