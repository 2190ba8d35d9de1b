import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl_divergence

from diffusion.gaussian import PIXEL, kl_divergence, log_density, log_pixel_mass

PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
means = st.floats(-3, 3)
log_variances = st.floats(-25, 10)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def normal(mean, log_variance):
    return Normal(f64(mean), f64(log_variance / 2).exp())


def exact_log_pixel_mass(k, mean, log_variance):
    """log of the mass on pixel value k with 40 digits; its two ends reach to infinity."""
    with mpmath.workdps(40):
        deviation = mpmath.exp(mpmath.mpf(log_variance) / 2)
        x0 = mpmath.mpf(k) / 127.5 - 1
        low = -mpmath.inf if k == 0 else (x0 - mean - mpmath.mpf(1) / 255) / deviation
        high = mpmath.inf if k == 255 else (x0 - mean + mpmath.mpf(1) / 255) / deviation
        low, high = (-high, -low) if low > 0 else (low, high)  # a difference of two tails, not of two near-ones
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@given(means, means, log_variances)
def test_the_log_density_is_that_of_torch(x, mean, log_variance):
    expected = normal(mean, log_variance).log_prob(f64(x)).item()

    assert log_density(f64(x), f64(mean), f64(log_variance)).item() == pytest.approx(expected, rel=1e-11, abs=1e-11)


@given(means, log_variances, means, log_variances)
def test_the_divergence_is_that_of_torch(mean, log_variance, other_mean, other_log_variance):
    expected = torch_kl_divergence(normal(mean, log_variance), normal(other_mean, other_log_variance)).item()
    ours = kl_divergence(f64(mean), f64(log_variance), f64(other_mean), f64(other_log_variance)).item()

    assert ours == pytest.approx(expected, rel=1e-10, abs=1e-13)
    assert ours >= -1e-13


@given(means, log_variances)
def test_a_gaussian_diverges_from_itself_by_exactly_nothing(mean, log_variance):
    for dtype in (torch.float32, torch.float64):
        itself = torch.tensor(mean, dtype=dtype), torch.tensor(log_variance, dtype=dtype)

        assert kl_divergence(*itself, *itself).item() == 0


@given(means, log_variances, st.sampled_from([-1, 1]), st.floats(1e-3, 1))
def test_gaussians_that_differ_diverge(mean, log_variance, sign, difference):
    deviation = math.exp(log_variance / 2)
    moved = kl_divergence(f64(mean), f64(log_variance), f64(mean + sign * difference * deviation), f64(log_variance))
    stretched = kl_divergence(f64(mean), f64(log_variance), f64(mean), f64(log_variance + sign * difference))

    assert moved.item() == pytest.approx(difference**2 / 2, rel=1e-6)
    assert stretched.item() > difference**2 / 8


def test_the_divergence_is_the_mean_difference_of_the_log_densities():
    draws = torch.Generator().manual_seed(0)
    x = 0.3 + 0.5 * torch.randn(200_000, generator=draws, dtype=torch.float64)
    p, q = (f64(0.3), f64(0.25).log()), (f64(-0.2), f64(0.8).log())
    differences = log_density(x, *p) - log_density(x, *q)

    assert kl_divergence(*p, *q).item() == pytest.approx(
        differences.mean().item(), abs=5 * differences.std().item() / 200_000**0.5
    )


@given(means, log_variances)
def test_the_mass_of_all_pixel_values_is_one(mean, log_variance):
    masses = log_pixel_mass(PIXELS, f64(mean), f64(log_variance)).exp()

    assert masses.sum().item() == pytest.approx(1, abs=1e-8)


@given(st.floats(-1.5, 1.5), st.floats(-20, 2))
def test_the_mass_of_all_pixel_values_is_one_in_float32(mean, log_variance):
    masses = log_pixel_mass(PIXELS.float(), torch.tensor(mean), torch.tensor(log_variance)).exp()

    assert masses.dtype == torch.float32
    assert masses.sum().item() == pytest.approx(1, abs=1e-3)


@given(st.integers(0, 255), means, st.floats(-16, 4))
def test_the_mass_of_a_pixel_is_exact_however_far_into_the_tail(k, mean, log_variance):
    ours = log_pixel_mass(PIXELS[k], f64(mean), f64(log_variance)).item()

    assert ours == pytest.approx(exact_log_pixel_mass(k, mean, log_variance), rel=1e-8, abs=1e-11)


@given(st.integers(0, 255), st.floats(-1e3, 1e3), st.floats(-15, 0))
def test_a_mass_and_its_gradient_are_finite_however_far_the_mean_is(k, mean, log_variance):
    parameters = [torch.tensor(value, requires_grad=True) for value in (mean, log_variance)]
    mass = log_pixel_mass(PIXELS[k].float(), *parameters)

    assert mass.isfinite()
    assert mass <= 1e-6
    assert all(gradient.isfinite() for gradient in torch.autograd.grad(mass, parameters))


@given(st.integers(0, 255), st.floats(1, 1000), st.floats(-15, -8))
def test_a_mean_far_off_is_drawn_to_the_near_edge_of_the_pixel(k, distance, log_variance):
    x0, side = PIXELS[k].float(), 1 if k < 128 else -1
    mean = (x0 + side * distance).requires_grad_()
    (gradient,) = torch.autograd.grad(log_pixel_mass(x0, mean, torch.tensor(log_variance)), mean)
    to_edge = (mean - x0).item() - side * PIXEL / 2

    assert gradient.item() == pytest.approx(-to_edge / math.exp(log_variance), rel=0.01)


def test_the_gradient_of_a_mass_is_its_derivative():
    x0 = PIXELS[[0, 1, 127, 128, 200, 254, 255]]
    mean = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64).flip(0).requires_grad_()
    log_variance = torch.linspace(-6, 0, 7, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(lambda m, v: log_pixel_mass(x0, m, v), (mean, log_variance))


@given(st.integers(0, 255), means, st.floats(-12, 2))
def test_a_mirrored_picture_costs_what_the_picture_costs(k, mean, log_variance):
    straight = log_pixel_mass(PIXELS[k], f64(mean), f64(log_variance)).item()
    mirrored = log_pixel_mass(PIXELS[255 - k], f64(-mean), f64(log_variance)).item()

    assert mirrored == pytest.approx(straight, rel=1e-8, abs=1e-12)
