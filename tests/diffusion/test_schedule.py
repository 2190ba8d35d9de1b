import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from diffusion.schedule import (
    SCHEDULES,
    alphas_cumprod,
    checked,
    cosine_betas,
    linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)

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
SHORTEST = {"linear": 21, "cosine": 1, "sigmoid": 1}  # a beta of the linear schedule is 20 / T


@st.composite
def tables(draw, shortest=1):
    """The betas of any schedule of any possible length."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    return SCHEDULES[name](draw(st.integers(max(shortest, SHORTEST[name]), 4000)))


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
@given(st.data())
def test_a_schedule_has_as_many_betas_as_it_is_asked_for(name, data):
    num_timesteps = data.draw(st.integers(SHORTEST[name], 4000))

    assert SCHEDULES[name](num_timesteps).shape == (num_timesteps,)


@given(tables())
def test_betas_are_float64_grow_and_lie_strictly_between_0_and_1(betas):
    assert betas.dtype == torch.float64
    assert (betas.diff() >= 0).all()
    assert 0 < betas[0] <= betas[-1] < 1


@given(tables())
def test_every_step_leaves_less_of_the_picture_but_never_nothing(betas):
    alpha_bar = alphas_cumprod(betas)

    assert (alpha_bar.diff() < 0).all()
    assert (alpha_bar > 0).all()


def jabri_betas(num_timesteps, start=-3.0, end=3.0, tau=1.0):
    """Algorithm 1 of Jabri et al. 2022 with its own defaults, and the betas of its curve."""
    u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    v_start, v_end = (torch.tensor(v / tau, dtype=torch.float64).sigmoid() for v in (start, end))
    curve = (v_end - ((u * (end - start) + start) / tau).sigmoid()) / (v_end - v_start)
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)


@given(st.integers(1, 2000))
def test_sigmoid_betas_are_those_of_the_paper(num_timesteps):
    torch.testing.assert_close(sigmoid_betas(num_timesteps), jabri_betas(num_timesteps), rtol=1e-8, atol=1e-15)


def test_half_way_the_sigmoid_schedule_leaves_half_of_the_picture():
    alpha_bar = alphas_cumprod(sigmoid_betas(1000))

    assert alpha_bar[499].item() == pytest.approx(0.5, rel=1e-12)


@given(tables(shortest=2))
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_first_step_as_it_was(betas):
    before, after = alphas_cumprod(betas), alphas_cumprod(zero_terminal_snr(betas))

    assert after[-1].item() == 0
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-12)
    assert (after.diff() < 0).all()


@given(tables(shortest=2))
def test_zero_terminal_snr_moves_the_signal_along_a_line(betas):
    before, after = alphas_cumprod(betas).sqrt(), alphas_cumprod(zero_terminal_snr(betas)).sqrt()
    share = (before[0] - before) / (before[0] - before[-1])

    torch.testing.assert_close((after[0] - after) / after[0], share, rtol=1e-7, atol=1e-12)


@given(tables(shortest=2))
def test_a_rescaled_schedule_is_float64_and_its_only_certain_step_is_the_last(betas):
    rescaled = zero_terminal_snr(betas)

    assert rescaled.dtype == torch.float64
    assert ((rescaled[:-1] > 0) & (rescaled[:-1] < 1)).all()
    assert rescaled[-1].item() == 1


@pytest.mark.parametrize("num_timesteps", [21, 100, 1000])
def test_zero_terminal_snr_equals_that_of_diffusers(num_timesteps):
    betas = linear_betas(num_timesteps)

    torch.testing.assert_close(zero_terminal_snr(betas), rescale_zero_terminal_snr(betas), rtol=1e-9, atol=1e-13)


def test_a_single_step_cannot_have_zero_terminal_snr():
    with pytest.raises(ValueError, match="num_timesteps must be at least 2 for a zero terminal SNR, got 1"):
        zero_terminal_snr(cosine_betas(1))


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_betas_equal_those_of_diffusers(name, theirs):
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)

    torch.testing.assert_close(SCHEDULES[name](1000), scheduler.betas.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_timesteps", [1, 2, 20])
def test_a_linear_schedule_too_short_for_its_betas_is_refused_with_its_length(num_timesteps):
    with pytest.raises(ValueError, match=rf"betas must lie in \(0, 1\).*num_timesteps={num_timesteps};"):
        linear_betas(num_timesteps)


@pytest.mark.parametrize("betas", [cosine_betas, sigmoid_betas])
def test_the_shortest_schedule_has_one_step(betas):
    assert betas(1).tolist() == [0.999]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_no_steps_is_refused(name):
    with pytest.raises(ValueError, match="num_timesteps must be at least 1, got 0"):
        SCHEDULES[name](0)


@pytest.mark.parametrize("impossible", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_table_with_an_impossible_beta_is_refused(impossible):
    betas = torch.tensor([0.1, impossible], dtype=torch.float64)

    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        checked(betas)
