from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion.process import CLEAN, Diffusion, DiffusionConfig, posterior, q_sample, split
from diffusion.samplers import (
    SAMPLERS,
    SPACINGS,
    Denoised,
    clipped,
    ddim,
    ddpm,
    dpmpp,
    eps_denoiser,
    heun,
    leading_timesteps,
    trailing_timesteps,
)

PROCESSES = {
    "linear": {},
    "cosine": {"schedule": "cosine"},
    "sigmoid": {"schedule": "sigmoid"},
    "zero_terminal_snr": {"zero_terminal_snr": True, "prediction": "v"},
}


def process(name="linear", **options):
    return Diffusion(DiffusionConfig(**PROCESSES[name] | options))


def picture(dtype=torch.float64):
    return 0.9 * (2 * torch.arange(48, dtype=dtype).reshape(1, 3, 4, 4) / 47 - 1)


def unit_noise(seed=0, dtype=torch.float64):
    """The same unit Gaussian whenever the noise of a step is asked for."""
    return lambda t: torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1000 * seed + t + 1), dtype=dtype)


def knowing(diffusion, x0):
    """A perfect denoiser: it knows the picture."""

    def denoise(x, t):
        return Denoised(x0, split("x0", diffusion.alpha_bar_at(t), x, x0)[1])

    return denoise


def guessing(diffusion, clip=True):
    """A denoiser that is wrong in another way at every timestep."""
    return eps_denoiser(lambda x, t: (2 * x + t).sin() + 0.2 * x, diffusion, clip)


@st.composite
def walks(draw, spacings=tuple(SPACINGS)):
    """A process of any length and timesteps of either spacing."""
    name = draw(st.sampled_from(sorted(PROCESSES)))
    num_timesteps = draw(st.integers(21, 1000))
    steps = draw(st.integers(1, min(60, num_timesteps)))
    return process(name, num_timesteps=num_timesteps), SPACINGS[draw(st.sampled_from(spacings))](num_timesteps, steps)


@given(st.sampled_from(sorted(SAMPLERS)), walks(), st.floats(0, 1))
def test_a_perfect_denoiser_leads_any_noise_to_its_picture(sampler, walk, eta):
    diffusion, timesteps = walk
    assume(sampler != "heun" or diffusion.alpha_bar_at(timesteps[0]) > 0)
    noise, x0 = unit_noise(), picture()
    *_, last = SAMPLERS[sampler](knowing(diffusion, x0), noise(1000), timesteps, diffusion, noise, eta)

    torch.testing.assert_close(last, x0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_denoiser_leads_ancestral_sampling_over_every_timestep_to_its_picture(name):
    diffusion, noise, x0 = process(name), unit_noise(), picture()
    *_, last = ddpm(knowing(diffusion, x0), noise(1000), leading_timesteps(1000, 1000), diffusion, noise)

    torch.testing.assert_close(last, x0, rtol=0, atol=1e-7)


@given(st.sampled_from(["ddim", "dpmpp", "heun"]), walks())
def test_a_deterministic_sampler_led_by_a_perfect_denoiser_keeps_the_noise_it_started_from(sampler, walk):
    diffusion, timesteps = walk
    assume(sampler != "heun" or diffusion.alpha_bar_at(timesteps[0]) > 0)
    x0, eps = picture(), unit_noise()(0)
    start = q_sample(diffusion.alpha_bar_at(timesteps[0]), x0, eps)
    trajectory = SAMPLERS[sampler](knowing(diffusion, x0), start, timesteps, diffusion, unit_noise())

    for t, x in zip([*timesteps[1:], CLEAN], trajectory, strict=True):
        torch.testing.assert_close(x, q_sample(diffusion.alpha_bar_at(t), x0, eps), rtol=0, atol=1e-7)


@given(st.sampled_from(sorted(SAMPLERS)), walks(), st.sampled_from([torch.float32, torch.float64]))
def test_a_sampler_yields_a_finite_x_a_timestep_in_the_dtype_it_was_given(sampler, walk, dtype):
    diffusion, timesteps = walk
    assume(sampler != "heun" or diffusion.alpha_bar_at(timesteps[0]) > 0)
    noise = unit_noise(dtype=dtype)
    denoise = knowing(diffusion, picture(dtype))
    states = list(SAMPLERS[sampler](denoise, noise(1000), timesteps, diffusion, noise))

    assert len(states) == len(timesteps)
    assert all(x.dtype == dtype and x.shape == (1, 3, 4, 4) and x.isfinite().all() for x in states)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_that_draws_all_its_noise_anew_is_ancestral_sampling_with_fixed_small(name, steps, spacing):
    diffusion, timesteps, noise = process(name), SPACINGS[spacing](1000, steps), unit_noise()
    ours = list(ddim(guessing(diffusion), noise(1000), timesteps, diffusion, noise, eta=1.0))
    ancestral = list(ddpm(guessing(diffusion), noise(1000), timesteps, diffusion, noise))

    torch.testing.assert_close(torch.stack(ours), torch.stack(ancestral), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
@pytest.mark.parametrize("steps", [7, 1000])
def test_a_variance_learned_to_an_end_of_its_range_is_walked_as_the_fixed_one(fraction, fixed, steps):
    learned, known = process(variance="learned", loss="hybrid"), process(variance=fixed)
    timesteps, noise = leading_timesteps(1000, steps), unit_noise()

    def denoise(x, t):
        return guessing(learned)(x, t)._replace(variance_fraction=torch.full_like(x, fraction))

    ours = list(ddpm(denoise, noise(1000), timesteps, learned, noise))
    theirs = list(ddpm(guessing(known), noise(1000), timesteps, known, noise))

    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_ddpm_over_every_timestep_draws_from_the_posterior(name):
    diffusion, noise, walked = process(name, num_timesteps=50), unit_noise(), []
    denoise, x = knowing(diffusion, picture()), noise(50)
    trajectory = list(ddpm(denoise, x, leading_timesteps(50, 50), diffusion, noise))
    for t in reversed(range(50)):
        mean, variance = posterior(diffusion.alpha_bar_at(t), diffusion.alpha_bar_at(t - 1), denoise(x, t).x0, x)
        x = mean + variance**0.5 * noise(t)
        walked.append(x)

    torch.testing.assert_close(torch.stack(trajectory), torch.stack(walked), rtol=0, atol=1e-11)


def jump(diffusion, t, s, data_variance):
    """What an exact ancestral step from t to s takes of x and of the noise, for N(0, data_variance) pictures."""

    def denoise(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        x0 = alpha_bar.sqrt() * data_variance / (alpha_bar * data_variance + 1 - alpha_bar) * x
        return Denoised(x0, split("x0", alpha_bar, x, x0)[1])

    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    of_x = next(ddpm(denoise, one, [t, s], diffusion, lambda t: zero)).item()
    of_noise = next(ddpm(denoise, zero, [t, s], diffusion, lambda t: one)).item()
    return of_x, of_noise


@given(st.data())
def test_fixed_large_steps_from_noise_to_noise_where_pictures_are_noise_and_fixed_small_where_there_is_but_one(data):
    t = data.draw(st.integers(1, 999))
    s = data.draw(st.integers(0, t - 1))
    of_x, of_noise = jump(process(variance="fixed_large"), t, s, data_variance=1.0)
    assert of_x**2 + of_noise**2 == pytest.approx(1, rel=1e-9)

    diffusion = process(variance="fixed_small")
    of_x, of_noise = jump(diffusion, t, s, data_variance=0.0)
    noise_before, noise_after = 1 - diffusion.alpha_bar_at(t).item(), 1 - diffusion.alpha_bar_at(s).item()
    assert of_x**2 * noise_before + of_noise**2 == pytest.approx(noise_after, rel=1e-9)


@pytest.mark.parametrize(
    ("sampler", "eta", "drawn"),
    [(ddpm, 0, [40, 20]), (ddim, 0, []), (ddim, 0.5, [40, 20]), (dpmpp, 0, []), (heun, 0, [])],
)
def test_a_random_sampler_draws_one_noise_for_every_step_but_the_last(sampler, eta, drawn):
    diffusion, x, asked = process(num_timesteps=50), picture(), []
    list(sampler(guessing(diffusion), x, [40, 20, 0], diffusion, lambda t: asked.append(t) or x, eta))

    assert asked == drawn


@pytest.mark.parametrize(
    ("sampler", "asked"), [(ddpm, [40, 20, 0]), (ddim, [40, 20, 0]), (dpmpp, [40, 20, 0]), (heun, [40, 20, 20, 0, 0])]
)
def test_a_sampler_asks_once_a_timestep_and_heun_twice_a_step_but_the_last(sampler, asked):
    diffusion, seen = process(num_timesteps=50), []
    denoise = guessing(diffusion)
    list(sampler(lambda x, t: seen.append(t) or denoise(x, t), picture(), [40, 20, 0], diffusion, unit_noise()))

    assert seen == asked


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "heun"])
def test_in_one_step_every_deterministic_sampler_says_what_the_denoiser_says(sampler):
    diffusion, x = process(), unit_noise()(0)
    (only,) = SAMPLERS[sampler](guessing(diffusion), x, trailing_timesteps(1000, 1), diffusion, unit_noise())

    torch.testing.assert_close(only, guessing(diffusion)(x, 999).x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_from_zero_snr_the_noise_leads_the_way_to_a_picture(sampler, steps):
    diffusion, noise = process("zero_terminal_snr", num_timesteps=100), unit_noise()
    timesteps = trailing_timesteps(100, steps)

    def denoise(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        x0, _ = split("v", alpha_bar, x, (3 * x).sin())
        return Denoised(x0.clamp(-1, 1), split("x0", alpha_bar, x, x0.clamp(-1, 1))[1])

    *_, last = SAMPLERS[sampler](denoise, noise(100), timesteps, diffusion, noise)

    assert timesteps[0] == 99
    assert diffusion.alpha_bar_at(99) == 0
    assert last.isfinite().all()
    assert last.abs().max() < 1.5


@pytest.mark.parametrize("steps", [1, 5])
def test_heun_refuses_to_begin_at_zero_snr_and_says_where_it_was_asked_to(steps):
    diffusion = process("zero_terminal_snr", num_timesteps=100)
    walk = heun(guessing(diffusion), picture(), trailing_timesteps(100, steps), diffusion, unit_noise())

    with pytest.raises(ValueError, match="heun must start at a timestep of non-zero SNR, got 99; use fewer steps"):
        next(walk)


@given(st.integers(0, 999), st.integers(0, 100))
def test_a_clipped_split_lies_in_range_and_mixes_back_to_what_was_split(t, seed):
    diffusion, x = process(), 2 * unit_noise(seed)(0)
    x0, eps, _ = guessing(diffusion)(x, t)

    assert x0.abs().max() <= 1
    torch.testing.assert_close(q_sample(diffusion.alpha_bar_at(t), x0, eps), x, rtol=0, atol=1e-9)


def test_clipping_leaves_the_variance_and_what_lies_in_range_alone():
    diffusion, x, fraction = process(), unit_noise()(0), torch.rand(1, 3, 4, 4)
    found = Denoised(0.5 * picture(), split("x0", diffusion.alpha_bar_at(300), x, 0.5 * picture())[1], fraction)
    same = clipped(found, diffusion.alpha_bar_at(300), x)

    assert torch.equal(same.x0, found.x0)
    assert torch.equal(same.eps, found.eps)
    assert same.variance_fraction is fraction


@given(st.integers(0, 999))
def test_an_unclipped_split_keeps_the_noise_that_was_named(t):
    diffusion, x = process(), unit_noise()(0)
    x0, eps, fraction = eps_denoiser(lambda x, t: x.cos(), diffusion, clip=False)(x, t)

    torch.testing.assert_close(eps, x.cos())
    torch.testing.assert_close(q_sample(diffusion.alpha_bar_at(t), x0, eps), x, rtol=0, atol=1e-9)
    assert fraction is None


@given(st.data(), st.integers(1, 4000))
def test_leading_timesteps_descend_evenly_to_zero(data, num_timesteps):
    steps = data.draw(st.integers(1, num_timesteps))
    timesteps = leading_timesteps(num_timesteps, steps)
    strides = {earlier - later for earlier, later in pairwise(timesteps)}

    assert len(timesteps) == steps
    assert timesteps[-1] == 0
    assert timesteps[0] < num_timesteps
    assert strides <= {num_timesteps // steps}


@given(st.data(), st.integers(1, 4000))
def test_trailing_timesteps_descend_evenly_from_the_last(data, num_timesteps):
    steps = data.draw(st.integers(1, num_timesteps))
    timesteps = trailing_timesteps(num_timesteps, steps)
    even = [num_timesteps - 1 - i * num_timesteps / steps for i in range(steps)]

    assert timesteps[0] == num_timesteps - 1
    assert timesteps[-1] >= 0
    assert all(earlier > later for earlier, later in pairwise(timesteps))
    assert timesteps == pytest.approx(even, abs=0.5 + 1e-9)
    assert all(isinstance(t, int) for t in timesteps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_as_many_steps_as_timesteps_visit_every_timestep(spacing):
    assert SPACINGS[spacing](7, 7) == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [0, -1, 101, 1000])
def test_more_steps_than_timesteps_or_none_are_refused_with_their_number(steps, spacing):
    with pytest.raises(ValueError, match=rf"steps must be 1 to 100 \(the model's timesteps\), got {steps}"):
        SPACINGS[spacing](100, steps)
