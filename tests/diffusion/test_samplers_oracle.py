import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from diffusion.loss import split_output
from diffusion.process import Diffusion, DiffusionConfig, split
from diffusion.samplers import SPACINGS, Denoised, clipped, ddim, ddpm, dpmpp, eps_denoiser, heun, leading_timesteps

THEIR_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
THEIR_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
THEIR_VARIANCES = {"fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned": "learned_range"}

PROCESSES = [
    pytest.param(1000, "leading", {}, id="every step"),
    pytest.param(250, "leading", {}, id="every fourth step"),
    pytest.param(50, "leading", {}, id="50 steps"),
    pytest.param(7, "leading", {}, id="a number of steps that does not divide T"),
    pytest.param(1, "leading", {}, id="one step"),
    pytest.param(50, "trailing", {}, id="trailing"),
    pytest.param(50, "leading", {"schedule": "cosine"}, id="cosine"),
    pytest.param(50, "leading", {"schedule": "sigmoid"}, id="sigmoid"),
    pytest.param(50, "leading", {"prediction": "x0"}, id="x0"),
    pytest.param(50, "leading", {"prediction": "v"}, id="v"),
    pytest.param(10, "trailing", {"num_timesteps": 200, "schedule": "cosine", "prediction": "v"}, id="T=200"),
]
ZERO_TERMINAL = pytest.param(50, "trailing", {"zero_terminal_snr": True, "prediction": "v"}, id="zero terminal SNR")
each_process = pytest.mark.parametrize(("steps", "spacing", "options"), PROCESSES)
each_process_and_zero_terminal = pytest.mark.parametrize(("steps", "spacing", "options"), [*PROCESSES, ZERO_TERMINAL])
their_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # under numpy 2


def process(variance="fixed_small", **options):
    loss = "hybrid" if variance == "learned" else "simple"
    return Diffusion(DiffusionConfig(variance=variance, loss=loss, **options))


def dummy_picture(dtype=torch.float64):
    return torch.arange(768, dtype=dtype).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / 768


def unit_noise(dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return lambda t: torch.randn(4, 3, 8, 8, generator=draws, dtype=dtype)


def dummy_network(x, t):
    return x * t / (t + 1)


def two_headed_network(x, t):
    """It also names a variance, for every pixel another."""
    return torch.cat([dummy_network(x, t), (3 * x).sin()], dim=1)


def denoiser(diffusion, network=dummy_network, clip=True, renew_eps=True):
    """The network's split of x_t; x0 clipped if `clip`, and eps then made to agree with it if `renew_eps`."""

    def denoise(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        output, fraction = split_output(diffusion, network(x, t))
        found = Denoised(*split(diffusion.config.prediction, alpha_bar, x, output), fraction)
        return Denoised(
            clipped(found, alpha_bar, x).x0 if clip else found.x0,
            clipped(found, alpha_bar, x).eps if clip and renew_eps else found.eps,
            fraction,
        )

    return denoise


def theirs_of(scheduler_class, diffusion, **options):
    """Their scheduler with our betas, in float32 as they keep them."""
    return scheduler_class(
        num_train_timesteps=diffusion.num_timesteps,
        trained_betas=diffusion.betas.tolist(),
        prediction_type=THEIR_PREDICTIONS[diffusion.config.prediction],
        **options,
    )


def exact(scheduler, diffusion):
    """With our tables in float64 for their float32 ones, the two can be compared to the last digits."""
    scheduler.betas, scheduler.alphas = diffusion.betas, 1 - diffusion.betas
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    return scheduler


def with_sigmas(scheduler, diffusion, timesteps, times):
    """Their scheduler at our timesteps, with s / a of our table in float64, the inner ones as often as they ask."""
    scheduler.set_timesteps(timesteps=timesteps)
    alpha_bar = diffusion.alphas_cumprod[timesteps]
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(times), sigmas.new_zeros(1)])
    return scheduler


def walk(scheduler, x, network=dummy_network, **options):
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
        yield x


def same(ours, theirs, atol=1e-9):
    ours, theirs = torch.stack(list(ours)), torch.stack(list(theirs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("variance", THEIR_VARIANCES)
@each_process_and_zero_terminal
def test_ddpm_walks_the_steps_of_diffusers(steps, spacing, options, variance):
    diffusion, x = process(variance, **options), dummy_picture()
    network = two_headed_network if variance == "learned" else dummy_network
    scheduler = theirs_of(
        DDPMScheduler, diffusion, variance_type=THEIR_VARIANCES[variance], clip_sample=True, timestep_spacing=spacing
    )
    exact(scheduler, diffusion).set_timesteps(steps)
    timesteps = SPACINGS[spacing](diffusion.num_timesteps, steps)

    ours = list(ddpm(denoiser(diffusion, network), x, timesteps, diffusion, unit_noise()))
    theirs = list(walk(scheduler, x, network, generator=torch.Generator().manual_seed(0)))

    # Where the last timestep is not 0 they leave noise in the picture, unless there is none in fixed_small's.
    alike = len(ours) if timesteps[-1] == 0 or variance == "fixed_small" else -1
    same(ours[:alike], theirs[:alike])
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize("renew_eps", [True, False])
@each_process_and_zero_terminal
def test_ddim_walks_the_steps_of_diffusers(steps, spacing, options, renew_eps, eta):
    diffusion, x = process(**options), dummy_picture()
    scheduler = theirs_of(DDIMScheduler, diffusion, clip_sample=True, timestep_spacing=spacing, set_alpha_to_one=True)
    exact(scheduler, diffusion).set_timesteps(steps)
    timesteps = SPACINGS[spacing](diffusion.num_timesteps, steps)
    draws = torch.Generator().manual_seed(0)

    same(
        ddim(denoiser(diffusion, renew_eps=renew_eps), x, timesteps, diffusion, unit_noise(), eta),
        walk(scheduler, x, eta=eta, use_clipped_model_output=renew_eps, generator=draws),
    )


@their_warning
@each_process
def test_dpmpp_walks_the_steps_of_diffusers(steps, spacing, options):
    diffusion, x = process(**options), dummy_picture()
    scheduler = theirs_of(
        DPMSolverMultistepScheduler,
        diffusion,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    timesteps = SPACINGS[spacing](diffusion.num_timesteps, steps)
    with_sigmas(scheduler, diffusion, timesteps, times=1)
    ours = list(dpmpp(denoiser(diffusion, clip=False), x, timesteps, diffusion, unit_noise()))

    largest = torch.stack(ours).abs().max().item()
    same(ours, walk(scheduler, x), atol=2e-5 * max(1, largest))  # they step in float32


@their_warning
@each_process
def test_heun_walks_the_steps_of_diffusers(steps, spacing, options):
    diffusion, x = process(**options), dummy_picture()
    timesteps = SPACINGS[spacing](diffusion.num_timesteps, steps)
    scheduler = with_sigmas(theirs_of(HeunDiscreteScheduler, diffusion), diffusion, timesteps, times=2)
    scaled, theirs = x / diffusion.alphas_cumprod[timesteps[0]].sqrt(), []
    for asked, t in enumerate(scheduler.timesteps.long()):
        output = dummy_network(scheduler.scale_model_input(scaled, t), t)
        scaled = scheduler.step(output, t, scaled).prev_sample
        if asked % 2 == 1 or asked == 2 * steps - 2:  # a step of theirs is two, but the last
            theirs.append(scaled / (1 + scheduler.sigmas[scheduler.step_index] ** 2).sqrt())
    ours = list(heun(denoiser(diffusion, clip=False), x, timesteps, diffusion, unit_noise()))

    largest = torch.stack(ours).abs().max().item()
    same(ours, theirs, atol=1e-9 * max(1, largest))


@pytest.mark.parametrize("schedule", THEIR_SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_a_network_is_sampled_as_by_an_untouched_diffusers(schedule, steps):
    diffusion, x = process(schedule=schedule), dummy_picture(torch.float32)
    timesteps, denoise = leading_timesteps(1000, steps), eps_denoiser(dummy_network, diffusion)
    options = {"beta_schedule": THEIR_SCHEDULES[schedule], "clip_sample": True, "timestep_spacing": "leading"}
    their_ddpm = DDPMScheduler(variance_type="fixed_small", **options)
    their_ddim = DDIMScheduler(set_alpha_to_one=True, **options)
    their_ddpm.set_timesteps(steps)
    their_ddim.set_timesteps(steps)

    # Their float32 tables are up to 2e-4 off (relative); measured 2.6e-4 and 7e-6 at 1000 cosine steps.
    same(
        ddpm(denoise, x, timesteps, diffusion, unit_noise(torch.float32)),
        walk(their_ddpm, x, generator=torch.Generator().manual_seed(0)),
        atol=5e-4,
    )
    same(
        ddim(denoise, x, timesteps, diffusion, unit_noise(torch.float32)),
        walk(their_ddim, x, use_clipped_model_output=True),
        atol=5e-5,
    )


def test_ddpm_of_the_dummy_network_has_the_known_sum():
    diffusion, x = process(), dummy_picture(torch.float32)
    denoise = eps_denoiser(dummy_network, diffusion)
    *_, last = ddpm(denoise, x, leading_timesteps(1000, 1000), diffusion, unit_noise(torch.float32))

    assert last.abs().sum().item() == pytest.approx(258.9606, abs=1e-2)


def test_ddim_of_the_dummy_network_has_the_known_sum():
    diffusion, x = process(), dummy_picture(torch.float32)
    denoise = denoiser(diffusion, renew_eps=False)
    *_, last = ddim(denoise, x, leading_timesteps(1000, 10), diffusion, unit_noise(torch.float32))

    assert last.abs().sum().item() == pytest.approx(172.0067, abs=1e-2)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("num_timesteps", "steps"), [(1000, 1), (1000, 7), (1000, 50), (1000, 1000), (200, 30), (5, 2)]
)
def test_timesteps_are_those_of_diffusers(num_timesteps, steps, spacing):
    scheduler = DDIMScheduler(num_train_timesteps=num_timesteps, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)

    assert np.array_equal(SPACINGS[spacing](num_timesteps, steps), scheduler.timesteps)
