import pytest
import torch

from diffusion.process import Diffusion, DiffusionConfig
from diffusion.samplers import SAMPLERS, SPACINGS, ddpm, eps_denoiser, leading_timesteps

MEAN, VARIANCE = 0.3, 0.2  # of the pictures, all pixels alike


def process(**options):
    return Diffusion(DiffusionConfig(**options))


def exact_denoiser(diffusion):
    """E[eps | x_t] of Gaussian pictures, which is known."""

    def eps_hat(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / (alpha_bar * VARIANCE + 1 - alpha_bar)

    return eps_denoiser(eps_hat, diffusion, clip=False)


def on_the_path(diffusion, z, t):
    """The solution of the probability-flow equation through z: of Gaussian pictures, x_t is z, scaled and shifted."""
    alpha_bar = diffusion.alpha_bar_at(t)
    return alpha_bar.sqrt() * MEAN + (alpha_bar * VARIANCE + 1 - alpha_bar).sqrt() * z


def error_between(sampler, diffusion, first, last, stride):
    """How far from the true path the sampler is at timestep `last`, having left it at `first`."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    timesteps = list(range(first, last - 1, -stride))
    *_, at_last, _ = SAMPLERS[sampler](
        exact_denoiser(diffusion), on_the_path(diffusion, z, first), timesteps, diffusion, lambda t: None
    )
    return (at_last - on_the_path(diffusion, z, last)).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_half_the_step_makes_an_error_smaller_by_the_order_of_the_method(sampler, order, schedule):
    diffusion = process(schedule=schedule)
    errors = [error_between(sampler, diffusion, 900, 300, stride) for stride in (20, 10, 5)]

    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.03)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(("sampler", "spacing"), [("dpmpp", "trailing"), ("heun", "leading")])
def test_a_second_order_method_in_its_own_spacing_is_nearer_to_the_picture_in_twenty_steps(sampler, spacing, schedule):
    # Not in the other one: dpmpp would draw its line far beyond the last two x0's, heun begin at an s / a of thousands.
    diffusion, z = process(schedule=schedule), torch.linspace(-2, 2, 9, dtype=torch.float64)
    timesteps = SPACINGS[spacing](1000, 20)
    start, picture = on_the_path(diffusion, z, timesteps[0]), MEAN + VARIANCE**0.5 * z
    errors = {}
    for name in ("ddim", sampler):
        *_, last = SAMPLERS[name](exact_denoiser(diffusion), start, timesteps, diffusion, lambda t: None)
        errors[name] = (last - picture).abs().max().item()

    assert errors[sampler] < errors["ddim"] / 2


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_draws_pictures_from_their_law(variance):
    diffusion, num = process(num_timesteps=400, variance=variance), 20_000
    draws = torch.Generator().manual_seed(0)

    def noise(t):
        return torch.randn(num, generator=draws, dtype=torch.float64)

    *_, last = ddpm(exact_denoiser(diffusion), noise(400), leading_timesteps(400, 400), diffusion, noise)

    assert last.mean().item() == pytest.approx(MEAN, abs=5 * (VARIANCE / num) ** 0.5 + 0.005)
    assert last.var().item() == pytest.approx(VARIANCE, rel=5 * (2 / num) ** 0.5 + 0.03)
