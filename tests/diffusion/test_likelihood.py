import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr

from diffusion.gaussian import log_pixel_mass
from diffusion.likelihood import bits_per_dim, prior_bits
from diffusion.process import Diffusion, DiffusionConfig, split, to_unit_range
from diffusion.samplers import Denoised, eps_denoiser

MEAN, VARIANCE = 0.1, 0.04  # of the pictures of a Gaussian world


def process(num_timesteps=50, variance="fixed_small", **options):
    return Diffusion(DiffusionConfig(num_timesteps=num_timesteps, variance=variance, loss="vlb", **options))


def random_pictures(*shape, seed=0):
    return to_unit_range(torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))).double()


def noise_like(x0):
    return lambda t: torch.randn(x0.shape, generator=torch.Generator().manual_seed(t + 1), dtype=x0.dtype)


def guess(x, t):
    """Some network's eps, and the variance that it names."""
    return (2 * x + t).sin(), (3 * x - t).cos()


def guessing(diffusion):
    def denoise(x, t):
        fraction = (guess(x, t)[1] + 1) / 2
        return eps_denoiser(lambda x, t: guess(x, t)[0], diffusion, clip=False)(x, t)._replace(
            variance_fraction=fraction if diffusion.config.variance == "learned" else None
        )

    return denoise


def knowing(diffusion, x0):
    return lambda x, t: Denoised(x0, split("x0", diffusion.alpha_bar_at(t), x, x0)[1])


def bound_of_the_papers(betas, x0, eps, variance):
    """The bound of pixels x0 [d] with noise eps [T, d], from the papers' formulas in numpy, in bits per dimension.

    Ho et al. 2020: eq. 5 (terms), 6, 7 (posterior), 11 (mean from eps), 13 (decoder); Nichol & Dhariwal 2021: eq. 15.
    """
    alphas, (num_timesteps, _) = 1 - betas, eps.shape
    bars = np.cumprod(alphas)
    tilde = [betas[t] * (1 - bars[t - 1]) / (1 - bars[t]) for t in range(1, num_timesteps)]
    tilde = [tilde[0], *tilde]  # the decoder has the variance of the step before
    terms = []
    for t in range(num_timesteps):
        x_t = np.sqrt(bars[t]) * x0 + np.sqrt(1 - bars[t]) * eps[t]
        eps_hat, named = (part.numpy() for part in guess(torch.from_numpy(x_t), t))
        mean = (x_t - betas[t] / np.sqrt(1 - bars[t]) * eps_hat) / np.sqrt(alphas[t])
        fraction = {"fixed_small": 0, "fixed_large": 1, "learned": (named + 1) / 2}[variance]
        sigma2 = np.exp(fraction * np.log(betas[t]) + (1 - fraction) * np.log(tilde[t])) * np.ones_like(x0)
        if t == 0:
            low, high = (x0 - 1 / 255 - mean) / np.sqrt(sigma2), (x0 + 1 / 255 - mean) / np.sqrt(sigma2)
            low, high = np.where(x0 == -1, -np.inf, low), np.where(x0 == 1, np.inf, high)
            low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
            nats = -(log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high))))
        else:
            of_x0 = np.sqrt(bars[t - 1]) * betas[t] / (1 - bars[t])
            of_x_t = np.sqrt(alphas[t]) * (1 - bars[t - 1]) / (1 - bars[t])
            error2 = (of_x0 * x0 + of_x_t * x_t - mean) ** 2
            nats = 0.5 * (np.log(sigma2 / tilde[t]) + (tilde[t] + error2) / sigma2 - 1)
        terms.append(nats.mean() / np.log(2))
    prior = 0.5 * (bars[-1] * x0**2 + (1 - bars[-1]) - 1 - np.log(1 - bars[-1])).mean() / np.log(2)
    return prior, terms


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_the_bound_is_that_of_the_papers_formulas(schedule, variance):
    diffusion, x0 = process(30, variance, schedule=schedule), random_pictures(2, 1, 4, 4)
    bound = bits_per_dim(guessing(diffusion), diffusion, x0, noise_like(x0))
    eps = torch.stack([noise_like(x0)(t) for t in range(30)])

    for i in range(2):
        flat_x0, flat_eps = x0[i].flatten().numpy(), eps[:, i].flatten(1).numpy()
        prior, terms = bound_of_the_papers(diffusion.betas.numpy(), flat_x0, flat_eps, variance)
        assert bound.prior[i].item() == pytest.approx(prior, rel=1e-6, abs=1e-12)
        assert bound.terms[i].tolist() == pytest.approx(terms, rel=1e-8)
        assert bound.total[i].item() == pytest.approx(prior + sum(terms), rel=1e-8)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 60))
def test_a_bound_has_a_prior_a_picture_and_a_term_a_timestep(b, c, side, num_timesteps):
    diffusion, x0 = process(num_timesteps, schedule="cosine"), random_pictures(b, c, side, side)
    bound = bits_per_dim(guessing(diffusion), diffusion, x0, noise_like(x0))

    assert bound.prior.shape == bound.total.shape == (b,)
    assert bound.terms.shape == (b, num_timesteps)
    assert bound.total.isfinite().all()


def test_the_denoiser_is_asked_once_a_timestep_and_shown_the_noise_of_that_step():
    diffusion, x0, asked = process(), random_pictures(1, 1, 4, 4), []

    def denoise(x, t):
        asked.append(t)
        alpha_bar = diffusion.alpha_bar_at(t)
        torch.testing.assert_close(x, alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise_like(x0)(t))
        return guessing(diffusion)(x, t)

    bits_per_dim(denoise, diffusion, x0, noise_like(x0))

    assert sorted(asked) == list(range(50))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("num_timesteps", [21, 100])
def test_a_perfect_denoiser_costs_nothing_but_decoder_and_prior(schedule, num_timesteps):
    diffusion, x0 = process(num_timesteps, schedule=schedule), random_pictures(2, 3, 4, 4).float()
    bound = bits_per_dim(knowing(diffusion, x0), diffusion, x0, noise_like(x0))

    assert (bound.terms[:, 1:] == 0).all()
    assert (bound.terms[:, 0] > 0).all()
    torch.testing.assert_close(bound.total, prior_bits(diffusion, x0) + bound.terms[:, 0])


def test_a_zero_terminal_snr_has_no_prior_to_pay_and_a_finite_bound():
    diffusion, x0 = process(50, prediction="v", zero_terminal_snr=True), random_pictures(2, 1, 4, 4)

    def denoise(x, t):
        return Denoised(*split("v", diffusion.alpha_bar_at(t), x, (2 * x).sin()))

    bound = bits_per_dim(denoise, diffusion, x0, noise_like(x0))

    assert bound.prior.tolist() == [0, 0]
    assert bound.total.isfinite().all()


def world_of_gaussian_pixels():
    """A picture of many pixels, its exact denoiser, and what the pixels cost by their true law."""
    draws = torch.Generator().manual_seed(0)
    x0 = MEAN + VARIANCE**0.5 * torch.randn(1, 1, 100, 100, generator=draws, dtype=torch.float64)
    x0 = ((x0 + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    law = torch.tensor(MEAN).double(), torch.tensor(VARIANCE).double().log()
    return x0, -log_pixel_mass(x0, *law).mean().item() / math.log(2)


def exact_denoiser(diffusion):
    def denoise(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        of_x = alpha_bar.sqrt() * VARIANCE / (alpha_bar * VARIANCE + 1 - alpha_bar)
        x0 = MEAN + of_x * (x - alpha_bar.sqrt() * MEAN)
        return Denoised(x0, split("x0", alpha_bar, x, x0)[1])

    return denoise


def gap(num_timesteps, variance):
    """By how much the bound of an exact denoiser is above what the pictures truly cost."""
    x0, truth = world_of_gaussian_pixels()
    diffusion = process(num_timesteps, variance, schedule="cosine")
    return bits_per_dim(exact_denoiser(diffusion), diffusion, x0, noise_like(x0)).total.item() - truth


def test_the_bound_of_gaussian_pictures_falls_towards_what_they_truly_cost_as_the_steps_get_shorter():
    gaps = [gap(num_timesteps, "fixed_large") for num_timesteps in (20, 60, 180)]

    assert gaps[0] > 2 * gaps[1]
    assert gaps[1] > 2 * gaps[2]
    assert gaps[2] > 0


def test_a_variance_too_small_for_the_pictures_costs_more_but_never_less_than_the_truth():
    assert gap(60, "fixed_small") > gap(60, "fixed_large") > 0


def test_a_worse_denoiser_costs_more():
    x0, _ = world_of_gaussian_pixels()
    diffusion = process(50, schedule="cosine")
    exact = exact_denoiser(diffusion)

    def biased(x, t):
        return exact(x, t)._replace(x0=exact(x, t).x0 + 0.02)

    costs = [bits_per_dim(denoise, diffusion, x0, noise_like(x0)).total.item() for denoise in (exact, biased)]

    assert costs[1] > costs[0] + 0.01


@given(st.floats(-1, 1), st.floats(1e-6, 0.9))
def test_the_prior_is_the_divergence_of_the_last_x_t_from_noise(value, alpha_bar):
    diffusion = process(21)
    diffusion.alphas_cumprod[-1] = alpha_bar  # no schedule leaves so much
    (bits,) = prior_bits(diffusion, torch.full((1, 1, 2, 2), value, dtype=torch.float64)).tolist()
    nats = 0.5 * (alpha_bar * value**2 - alpha_bar - math.log1p(-alpha_bar))

    assert bits == pytest.approx(nats / math.log(2), rel=1e-6, abs=1e-14)
