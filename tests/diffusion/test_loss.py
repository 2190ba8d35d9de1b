import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import log_pixel_mass
from diffusion.likelihood import bits_per_dim
from diffusion.loss import bound_terms, loss, split_output
from diffusion.process import Diffusion, DiffusionConfig, q_sample, split, target, to_unit_range
from diffusion.samplers import eps_denoiser
from diffusion.unet import UNet, UNetConfig

PREDICTIONS = ["eps", "x0", "v"]
SCHEDULES = ["linear", "cosine", "sigmoid"]
TRAINED = [  # every loss with every variance that it goes with
    *(
        {"loss": loss, "variance": fixed}
        for loss in ("simple", "min_snr", "vlb")
        for fixed in ("fixed_small", "fixed_large")
    ),
    *({"loss": loss, "variance": "learned"} for loss in ("vlb", "hybrid")),
]
each_loss = pytest.mark.parametrize("options", TRAINED, ids=lambda o: f"{o['loss']} {o['variance']}")


def process(**options):
    return Diffusion(DiffusionConfig(**options))


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_pictures(*shape, seed=0, dtype=torch.float64):
    return to_unit_range(torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def saying(answer):
    """A network that says this, whatever it sees."""
    return lambda x_t, t, labels: answer


def with_variance(output, diffusion, value=0.3):
    """An answer that also names a variance, if one is learned."""
    if diffusion.config.variance != "learned":
        return output
    return torch.cat([output, torch.full_like(output, value)], dim=1)


def squared_error(a, b):
    return (a - b).square().mean(dim=(1, 2, 3))


def test_a_network_that_starts_at_zero_has_an_eps_loss_of_one():
    model = UNet(UNetConfig(image_size=8, base_channels=8, norm_groups=4, channel_mults=(1, 2), num_res_blocks=1))
    t = torch.arange(0, 1000, 4)
    eps = randn(250, 3, 8, 8, seed=0, dtype=torch.float32)
    with torch.no_grad():
        losses = loss(process(), model, random_pictures(250, 3, 8, 8, dtype=torch.float32), t, eps, None)

    assert losses.mean().item() == pytest.approx(1, abs=5 * (2 / eps.numel()) ** 0.5)  # five standard errors


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["simple", "min_snr"])
def test_a_network_that_knows_the_answer_has_no_loss(name, prediction):
    diffusion, t = process(loss=name, prediction=prediction), torch.tensor([0, 10, 500, 999])
    x0, eps = (randn(4, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    answer = target(prediction, diffusion.alpha_bar(t), x0, eps)

    assert loss(diffusion, saying(answer), x0, t, eps, None).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_simple_loss_is_the_squared_error_of_what_is_predicted(prediction):
    diffusion, t = process(prediction=prediction), torch.tensor([0, 500, 999])
    x0, eps, answer = (randn(3, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1, 2))
    alpha_bar = diffusion.alpha_bar(t)
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
    losses = loss(diffusion, saying(answer), x0, t, eps, None)

    torch.testing.assert_close(losses, squared_error(answer, {"eps": eps, "x0": x0, "v": v}[prediction]).float())


@each_loss
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_sample_does_not_depend_on_the_others(prediction, options):
    diffusion, t = process(prediction=prediction, **options), torch.tensor([0, 3, 500, 998])
    x0, eps = random_pictures(4, 3, 4, 4), randn(4, 3, 4, 4, seed=1)

    def network(x_t, t, labels):
        return with_variance(x_t / 2, diffusion)

    together = loss(diffusion, network, x0, t, eps, None)
    alone = [loss(diffusion, network, x0[i : i + 1], t[i : i + 1], eps[i : i + 1], None) for i in range(4)]

    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-9)
    assert len(set(together.tolist())) == 4


@each_loss
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.data())
def test_a_loss_is_one_finite_float32_a_sample_for_any_shape_and_t(options, b, c, side, data):
    schedule = data.draw(st.sampled_from(SCHEDULES))
    num_timesteps = data.draw(st.integers(21 if schedule == "linear" else 1, 300))
    diffusion = process(schedule=schedule, num_timesteps=num_timesteps, **options)
    t = torch.tensor(data.draw(st.lists(st.integers(0, num_timesteps - 1), min_size=b, max_size=b)))
    x0, eps = random_pictures(b, c, side, side).float(), randn(b, c, side, side, seed=1).float()
    answer = with_variance(randn(b, c, side, side, seed=2), diffusion).bfloat16()
    losses = loss(diffusion, saying(answer), x0, t, eps, None)

    assert losses.shape == (b,)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@each_loss
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_zero_terminal_snr_leaves_every_loss_and_its_gradient_finite(prediction, options):
    if options["loss"] == "min_snr":
        return  # refused: see below
    diffusion = process(prediction=prediction, zero_terminal_snr=True, num_timesteps=50, **options)
    x0, eps, t = random_pictures(50, 1, 2, 2).float(), randn(50, 1, 2, 2, seed=1).float(), torch.arange(50)
    answer = with_variance(randn(50, 1, 2, 2, seed=2), diffusion).float().requires_grad_()
    losses = loss(diffusion, saying(answer), x0, t, eps, None)
    (gradient,) = torch.autograd.grad(losses.sum(), answer)

    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_the_network_is_shown_the_noisy_picture_its_timestep_and_label():
    diffusion, t, labels = process(), torch.tensor([0, 999]), torch.tensor([1, 4])
    x0, eps = (randn(2, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    shown = []

    def network(x_t, t, labels):
        shown.append((x_t, t, labels))
        return x_t

    loss(diffusion, network, x0, t, eps, labels)
    ((x_t, shown_t, shown_labels),) = shown

    assert torch.equal(x_t, q_sample(diffusion.alpha_bar(t), x0, eps))
    assert torch.equal(shown_t, t)
    assert torch.equal(shown_labels, labels)


def test_the_loss_of_a_half_precision_answer_is_taken_in_float32():
    diffusion, t = process(), torch.tensor([500])
    x0, eps = (randn(1, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    losses = loss(diffusion, lambda x_t, t, labels: torch.zeros_like(x_t, dtype=torch.bfloat16), x0, t, eps, None)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, eps.square().mean(dim=(1, 2, 3)))


@given(st.sampled_from(SCHEDULES), st.lists(st.integers(0, 900), min_size=1, max_size=5), st.floats(0.01, 100))
def test_min_snr_is_the_same_weight_on_the_error_of_x0_whatever_is_predicted(schedule, ts, gamma):
    t, shape = torch.tensor(ts), (len(ts), 1, 4, 4)
    x0, x0_hat, eps = random_pictures(*shape), randn(*shape, seed=1), randn(*shape, seed=2)
    alpha_bar = process(schedule=schedule).alpha_bar(t)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    eps_hat = (signal * x0 + noise * eps - signal * x0_hat) / noise
    answers = {"eps": eps_hat, "x0": x0_hat, "v": signal * eps_hat - noise * x0_hat}
    clipped_snr = (alpha_bar / (1 - alpha_bar)).clamp(max=gamma).flatten()
    expected = clipped_snr * squared_error(x0_hat, x0)

    for prediction, answer in answers.items():
        diffusion = process(schedule=schedule, prediction=prediction, loss="min_snr", snr_gamma=gamma)
        losses = loss(diffusion, saying(answer), x0, t, eps, None)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("variance", "num_timesteps"), [("fixed_small", 1000), ("fixed_large", 1000), ("fixed_small", 50)]
)
def test_the_bound_is_the_weighted_eps_loss_of_ho_et_al(variance, num_timesteps):
    diffusion = process(loss="vlb", variance=variance, num_timesteps=num_timesteps)
    t = torch.arange(1, num_timesteps, num_timesteps // 25)
    x0, eps = random_pictures(len(t), 1, 4, 4), randn(len(t), 1, 4, 4, seed=1)
    eps_hat = randn(len(t), 1, 4, 4, seed=2, dtype=torch.float32).double()
    losses = loss(diffusion, saying(eps_hat), x0, t, eps, None)

    beta, alpha_bar, previous = diffusion.betas[t], diffusion.alphas_cumprod[t], diffusion.alphas_cumprod[t - 1]
    true_variance = beta * (1 - previous) / (1 - alpha_bar)
    sigma2 = {"fixed_small": true_variance, "fixed_large": beta}[variance]
    of_error = beta**2 / (2 * sigma2 * (1 - beta) * (1 - alpha_bar))  # eq. 12
    of_variance = 0.5 * (true_variance / sigma2 - 1 + (sigma2 / true_variance).log())
    nats = of_error * squared_error(eps, eps_hat) + of_variance

    torch.testing.assert_close(losses.double(), num_timesteps * nats / math.log(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_last_term_of_the_bound_is_what_the_decoder_needs(prediction):
    diffusion, t = process(loss="vlb", prediction=prediction), torch.zeros(3, dtype=torch.long)
    x0, eps = random_pictures(3, 1, 4, 4), randn(3, 1, 4, 4, seed=1)
    answer = target(prediction, diffusion.alpha_bar(t), x0, eps) + 0.01
    losses = loss(diffusion, saying(answer), x0, t, eps, None)

    x0_hat, _ = split(prediction, diffusion.alpha_bar(t), q_sample(diffusion.alpha_bar(t), x0, eps), answer.float())
    beta, alpha_bar = diffusion.betas, diffusion.alphas_cumprod
    variance_of_next = beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
    nats = -log_pixel_mass(x0, x0_hat, variance_of_next.log()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.double(), 1000 * nats / math.log(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_mean_of_the_bound_loss_over_all_timesteps_is_the_bound(schedule):
    diffusion, noise = process(loss="vlb", schedule=schedule, num_timesteps=30), randn(30, 2, 1, 4, 4, seed=1)
    x0 = random_pictures(2, 1, 4, 4)
    losses = [
        loss(diffusion, lambda x_t, t, labels: x_t / 2, x0, torch.full((2,), t), noise[t], None) for t in range(30)
    ]
    bound = bits_per_dim(eps_denoiser(lambda x, t: x / 2, diffusion, clip=False), diffusion, x0, lambda t: noise[t])

    torch.testing.assert_close(torch.stack(losses).mean(dim=0).double(), bound.terms.sum(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("value", "fixed"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_a_variance_learned_to_an_end_of_its_range_is_the_fixed_one(value, fixed):
    learned, known = process(loss="vlb", variance="learned"), process(loss="vlb", variance=fixed)
    t, x0 = torch.tensor([0, 1, 30, 999]), random_pictures(4, 3, 4, 4)
    eps, output = randn(4, 3, 4, 4, seed=1), randn(4, 3, 4, 4, seed=2)
    by_learned = loss(learned, saying(with_variance(output, learned, value)), x0, t, eps, None)

    torch.testing.assert_close(by_learned, loss(known, saying(output), x0, t, eps, None), rtol=1e-6, atol=0)


def test_the_first_half_of_the_channels_is_the_prediction_and_the_second_the_variance():
    output = randn(2, 6, 4, 4, seed=0)
    prediction, fraction = split_output(process(variance="learned", loss="hybrid"), output)

    assert torch.equal(prediction, output[:, :3])
    torch.testing.assert_close(fraction, 0.5 + 0.5 * output[:, 3:])


def test_without_a_learned_variance_all_channels_are_the_prediction():
    output = randn(2, 6, 4, 4, seed=0)
    prediction, fraction = split_output(process(), output)

    assert torch.equal(prediction, output)
    assert fraction is None


def value_and_gradients(name, prediction):
    """A loss of a learned variance, and its gradients for the channels of the mean and of the variance."""
    diffusion = process(loss=name, variance="learned", prediction=prediction)
    t, x0, eps = torch.tensor([0, 1, 30, 999]), random_pictures(4, 3, 4, 4), randn(4, 3, 4, 4, seed=1)
    output = randn(4, 6, 4, 4, seed=2).requires_grad_()
    losses = loss(diffusion, saying(output), x0, t, eps, None)
    (gradient,) = torch.autograd.grad(losses.sum(), output)
    return losses, *gradient.chunk(2, dim=1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_hybrid_loss_teaches_the_mean_by_the_squared_error_and_the_variance_by_the_bound(prediction):
    hybrid, of_mean, of_variance = value_and_gradients("hybrid", prediction)
    bound, bound_of_mean, bound_of_variance = value_and_gradients("vlb", prediction)

    diffusion, t = process(prediction=prediction), torch.tensor([0, 1, 30, 999])
    x0, eps, output = random_pictures(4, 3, 4, 4), randn(4, 3, 4, 4, seed=1), randn(4, 6, 4, 4, seed=2)[:, :3]
    output.requires_grad_()
    simple = loss(diffusion, saying(output), x0, t, eps, None)
    (simple_of_mean,) = torch.autograd.grad(simple.sum(), output)

    torch.testing.assert_close(of_mean, simple_of_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(of_variance, bound_of_variance / 1000, rtol=1e-6, atol=0)
    torch.testing.assert_close(hybrid.double(), (simple + bound / 1000).double(), rtol=1e-6, atol=0)
    assert bound_of_mean.abs().amax(dim=(1, 2, 3)).min() > 0
    assert of_variance.abs().amax(dim=(1, 2, 3)).min() > 0


@given(st.sampled_from(SCHEDULES), st.integers(1, 999), st.floats(-3, 3), st.floats(-1, 2))
def test_a_term_of_the_bound_after_the_decoder_is_never_negative(schedule, t, error, fraction):
    x0, eps = random_pictures(1, 1, 4, 4), randn(1, 1, 4, 4, seed=1)
    ts, fractions = torch.tensor([t]), torch.full((1, 1, 4, 4), fraction, dtype=torch.float64)
    diffusion = process(schedule=schedule, loss="vlb", variance="learned")
    term = bound_terms(diffusion, ts, x0, q_sample(diffusion.alpha_bar(ts), x0, eps), x0 + error, fractions)

    assert term.item() >= -1e-12
