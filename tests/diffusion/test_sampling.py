from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process import Diffusion, DiffusionConfig, q_sample, split, to_uint8
from diffusion.sampling import (
    SamplerConfig,
    ddim,
    ddpm,
    leading_timesteps,
    network_denoiser,
    sample_images,
    sample_trajectory,
)
from diffusion.seeding import generator
from diffusion.unet import UNet, UNetConfig

THEIR_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
THEIR_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
CHUNK = 4


def process(num_timesteps=1000, schedule="linear", prediction="eps"):
    return Diffusion(DiffusionConfig(num_timesteps=num_timesteps, schedule=schedule, prediction=prediction))


def small_unet(num_classes=0, scale=1.0, base_channels=8, image_size=8):
    """A small network with no weight at zero, in evaluation mode; its answers are about `scale` large."""
    config = UNetConfig(
        image_size=image_size,
        num_classes=num_classes,
        base_channels=base_channels,
        norm_groups=4,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
    )
    model, draws = UNet(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else parameter + 0.3 * noise)
        for parameter in model.conv_out.parameters():
            parameter.mul_(scale)
    return model


def pictures(seeds, labels=None, model=None, **options):
    """All pictures of a request, one tensor."""
    model = model or small_unet(num_classes=0 if labels is None else 3)
    config = SamplerConfig(**{"steps": 3} | options)
    return torch.cat(list(sample_images(model, process(100), seeds, labels, config, CHUNK)))


@given(st.data(), st.integers(1, 4000))
def test_leading_timesteps_descend_evenly_to_zero(data, num_timesteps):
    steps = data.draw(st.integers(1, num_timesteps))
    timesteps = leading_timesteps(num_timesteps, steps)
    strides = {earlier - later for earlier, later in pairwise(timesteps)}

    assert len(timesteps) == steps
    assert timesteps[-1] == 0
    assert timesteps[0] < num_timesteps
    assert strides <= {num_timesteps // steps}


@given(st.data(), st.integers(1, 1000))
def test_leading_timesteps_are_those_of_diffusers(data, num_timesteps):
    steps = data.draw(st.integers(1, num_timesteps))
    scheduler = DDIMScheduler(num_train_timesteps=num_timesteps, timestep_spacing="leading")
    scheduler.set_timesteps(steps)

    assert leading_timesteps(num_timesteps, steps) == scheduler.timesteps.tolist()


def test_as_many_steps_as_timesteps_visit_every_timestep():
    assert leading_timesteps(7, 7) == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("steps", [0, -1, 101, 1000])
def test_more_steps_than_timesteps_or_none_are_refused_with_their_number(steps):
    with pytest.raises(ValueError, match=rf"steps must be 1 to 100 \(the model's timesteps\), got {steps}"):
        leading_timesteps(100, steps)


def dummy_picture(dtype):
    return torch.arange(768, dtype=dtype).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / 768


def dummy_network(x, t, labels=None):
    t = t.view(-1, 1, 1, 1)
    return x * t / (t + 1)


def dummy_denoiser(diffusion, renew_eps):
    """The dummy network's split of x_t, in x_t's precision, x0 clipped; eps made to agree with it if `renew_eps`."""

    def denoise(x, t):
        alpha_bar = diffusion.alphas_cumprod[t]
        x0, eps = split(diffusion.config.prediction, alpha_bar, x, dummy_network(x, torch.tensor([t])))
        x0 = x0.clamp(-1, 1)
        return x0, split("x0", alpha_bar, x, x0)[1] if renew_eps else eps

    return denoise


def unit_noise(dtype):
    draws = torch.Generator().manual_seed(0)
    return lambda t: torch.randn(4, 3, 8, 8, generator=draws, dtype=dtype)


def their_ddpm(diffusion):
    return DDPMScheduler(
        num_train_timesteps=diffusion.num_timesteps,
        beta_schedule=THEIR_SCHEDULES[diffusion.config.schedule],
        prediction_type=THEIR_PREDICTIONS[diffusion.config.prediction],
        variance_type="fixed_small",
        clip_sample=True,
        timestep_spacing="leading",
    )


def their_ddim(diffusion):
    return DDIMScheduler(
        num_train_timesteps=diffusion.num_timesteps,
        beta_schedule=THEIR_SCHEDULES[diffusion.config.schedule],
        prediction_type=THEIR_PREDICTIONS[diffusion.config.prediction],
        set_alpha_to_one=True,
        clip_sample=True,
        timestep_spacing="leading",
    )


def their_trajectory(scheduler, steps, x, **options):
    scheduler.set_timesteps(steps)
    trajectory = []
    for t in scheduler.timesteps:
        x = scheduler.step(dummy_network(x, t), t, x, **options).prev_sample
        trajectory.append(x)
    return torch.stack(trajectory)


def with_tables_of(diffusion, scheduler):
    """diffusers keeps its tables in float32; with ours in float64 the two can be compared to the last digits."""
    scheduler.betas, scheduler.alphas = diffusion.betas, 1 - diffusion.betas
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    return scheduler


PROCESSES = [
    pytest.param(1000, 1000, "linear", "eps", id="every step"),
    pytest.param(1000, 250, "linear", "eps", id="every fourth step"),
    pytest.param(1000, 50, "linear", "eps", id="50 steps"),
    pytest.param(1000, 7, "linear", "eps", id="a number of steps that does not divide T"),
    pytest.param(1000, 1, "linear", "eps", id="one step"),
    pytest.param(1000, 50, "cosine", "eps", id="cosine"),
    pytest.param(1000, 50, "linear", "x0", id="x0"),
    pytest.param(1000, 50, "linear", "v", id="v"),
    pytest.param(200, 10, "cosine", "v", id="200 timesteps"),
]


@pytest.mark.parametrize(("num_timesteps", "steps", "schedule", "prediction"), PROCESSES)
def test_ddpm_walks_the_steps_of_diffusers(num_timesteps, steps, schedule, prediction):
    diffusion, x = process(num_timesteps, schedule, prediction), dummy_picture(torch.float64)
    scheduler = with_tables_of(diffusion, their_ddpm(diffusion))
    theirs = their_trajectory(scheduler, steps, x, generator=torch.Generator().manual_seed(0))
    denoise = dummy_denoiser(diffusion, renew_eps=False)
    ours = list(ddpm(denoise, x, leading_timesteps(num_timesteps, steps), diffusion, unit_noise(torch.float64)))

    torch.testing.assert_close(torch.stack(ours), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("renew_eps", [True, False])
@pytest.mark.parametrize(("num_timesteps", "steps", "schedule", "prediction"), PROCESSES)
def test_ddim_walks_the_steps_of_diffusers(num_timesteps, steps, schedule, prediction, renew_eps):
    diffusion, x = process(num_timesteps, schedule, prediction), dummy_picture(torch.float64)
    scheduler = with_tables_of(diffusion, their_ddim(diffusion))
    theirs = their_trajectory(scheduler, steps, x, use_clipped_model_output=renew_eps)
    denoise = dummy_denoiser(diffusion, renew_eps)
    ours = list(ddim(denoise, x, leading_timesteps(num_timesteps, steps), diffusion, unit_noise(torch.float64)))

    torch.testing.assert_close(torch.stack(ours), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", THEIR_SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_a_network_is_sampled_as_by_an_untouched_diffusers(schedule, steps):
    diffusion, x = process(schedule=schedule), dummy_picture(torch.float32)
    timesteps, denoise = leading_timesteps(1000, steps), network_denoiser(dummy_network, diffusion, None)
    ancestral = list(ddpm(denoise, x, timesteps, diffusion, unit_noise(torch.float32)))
    deterministic = list(ddim(denoise, x, timesteps, diffusion, unit_noise(torch.float32)))
    their_ancestral = their_trajectory(their_ddpm(diffusion), steps, x, generator=torch.Generator().manual_seed(0))
    their_deterministic = their_trajectory(their_ddim(diffusion), steps, x, use_clipped_model_output=True)

    # Their float32 tables are up to 2e-4 off (relative); measured 2.6e-4 and 7e-6 at 1000 cosine steps.
    torch.testing.assert_close(torch.stack(ancestral), their_ancestral, rtol=0, atol=5e-4)
    torch.testing.assert_close(torch.stack(deterministic), their_deterministic, rtol=0, atol=5e-5)


def test_ddpm_of_the_dummy_network_has_the_known_sum():
    diffusion, x = process(), dummy_picture(torch.float32)
    denoise = network_denoiser(dummy_network, diffusion, None)
    *_, last = ddpm(denoise, x, leading_timesteps(1000, 1000), diffusion, unit_noise(torch.float32))

    assert last.abs().sum().item() == pytest.approx(258.9606, abs=1e-2)


def test_ddim_of_the_dummy_network_has_the_known_sum():
    diffusion, x = process(), dummy_picture(torch.float32)
    denoise = dummy_denoiser(diffusion, renew_eps=False)
    *_, last = ddim(denoise, x, leading_timesteps(1000, 10), diffusion, unit_noise(torch.float32))

    assert last.abs().sum().item() == pytest.approx(172.0067, abs=1e-2)


def perfect_network(diffusion, x0):
    """It knows the picture: eps = (x - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)."""

    def network(x, t, labels):
        alpha_bar = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    return network


@pytest.mark.parametrize(("sampler", "steps"), [(ddpm, 1000), (ddim, 50)])
@pytest.mark.parametrize("schedule", THEIR_SCHEDULES)
def test_a_perfect_network_leads_any_noise_to_its_picture(sampler, steps, schedule):
    diffusion, noise = process(schedule=schedule), unit_noise(torch.float64)
    x0 = (2 * dummy_picture(torch.float64) - 1) * 0.9
    network = perfect_network(diffusion, x0)

    def denoise(x, t):
        return split("eps", diffusion.alphas_cumprod[t], x, network(x, torch.full((4,), t), None))

    *_, last = sampler(denoise, noise(1000), leading_timesteps(1000, steps), diffusion, noise)

    torch.testing.assert_close(last, x0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_led_by_a_perfect_network_keeps_the_noise_it_started_from(steps):
    diffusion, x0 = process(), dummy_picture(torch.float64)
    timesteps, eps = leading_timesteps(1000, steps), unit_noise(torch.float64)(0)
    network = perfect_network(diffusion, x0)

    def denoise(x, t):
        return split("eps", diffusion.alphas_cumprod[t], x, network(x, torch.full((4,), t), None))

    start = q_sample(diffusion.alphas_cumprod[timesteps[0]], x0, eps)
    trajectory = list(ddim(denoise, start, timesteps, diffusion, unit_noise(torch.float64)))

    for t, x in zip(timesteps[1:], trajectory, strict=False):
        torch.testing.assert_close(x, q_sample(diffusion.alphas_cumprod[t], x0, eps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", THEIR_SCHEDULES)
def test_ddpm_over_every_timestep_draws_from_the_posterior(schedule):
    diffusion, x = process(50, schedule), dummy_picture(torch.float64)
    denoise, kept, walked = dummy_denoiser(diffusion, renew_eps=False), unit_noise(torch.float64), []
    trajectory = list(ddpm(denoise, x, leading_timesteps(50, 50), diffusion, unit_noise(torch.float64)))
    for t in reversed(range(50)):
        mean, variance = diffusion.posterior(t, denoise(x, t)[0], x)
        x = mean + variance**0.5 * kept(t) if t else mean
        walked.append(x)

    torch.testing.assert_close(torch.stack(trajectory), torch.stack(walked), rtol=0, atol=1e-11)


def test_ddim_draws_no_noise_and_ddpm_one_for_every_step_but_the_last():
    diffusion, x = process(50), dummy_picture(torch.float32)
    denoise, asked = dummy_denoiser(diffusion, renew_eps=False), {ddim: [], ddpm: []}
    for sampler, timesteps in asked.items():
        list(sampler(denoise, x, [40, 20, 0], diffusion, lambda t, seen=timesteps: seen.append(t) or x))

    assert asked == {ddim: [], ddpm: [40, 20]}


@pytest.mark.parametrize("prediction", THEIR_PREDICTIONS)
@pytest.mark.parametrize("t", [0, 500, 999])
@torch.no_grad()
def test_the_denoised_picture_lies_in_range_and_mixes_back_with_its_noise(prediction, t):
    diffusion, x = process(prediction=prediction), 2 * unit_noise(torch.float32)(0)
    x0, eps = network_denoiser(small_unet(), diffusion, None)(x, t)
    mixed = q_sample(diffusion.alpha_bar(torch.tensor([t])), x0, eps)

    assert x0.abs().max() <= 1
    torch.testing.assert_close(mixed, x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_guidance_1_is_the_conditional_model_asked_once():
    model, diffusion, labels = small_unet(num_classes=3), process(prediction="v"), torch.tensor([0, 1, 2, 3])
    x, calls = unit_noise(torch.float32)(0), []
    model.register_forward_hook(lambda *_: calls.append(1))
    x0, _ = network_denoiser(model, diffusion, labels, guidance=1.0)(x, 500)
    num_calls = len(calls)
    output = model(x, torch.full((4,), 500), labels)
    expected, _ = split("v", diffusion.alpha_bar(torch.full((4,), 500)), x, output)

    assert num_calls == 1
    assert torch.equal(x0, expected.clamp(-1, 1))


@pytest.mark.parametrize("prediction", THEIR_PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
@torch.no_grad()
def test_guidance_mixes_the_answers_with_and_without_the_label_linearly(prediction, guidance):
    model, diffusion = small_unet(num_classes=3, scale=0.05), process(prediction=prediction)
    x, t = 0.1 * unit_noise(torch.float32)(0), torch.full((4,), 300)
    labels, null = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 3, 3, 3])
    conditional, unconditional = model(x, t, labels), model(x, t, null)
    mixed = (1 - guidance) * unconditional + guidance * conditional
    expected, _ = split(prediction, diffusion.alpha_bar(t), x, mixed)
    x0, _ = network_denoiser(model, diffusion, labels, guidance)(x, 300)

    assert expected.abs().max() < 1  # so that clipping does not hide the mix
    assert (conditional - unconditional).abs().max() > 1e-3
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_guidance_does_not_change_a_picture_of_the_null_class():
    model, diffusion, null = small_unet(num_classes=3), process(), torch.tensor([3, 3, 3, 3])
    x = unit_noise(torch.float32)(0)
    plain, guided = (network_denoiser(model, diffusion, null, guidance)(x, 300)[0] for guidance in (1.0, 4.0))

    assert torch.equal(plain, guided)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_guidance_of_an_unconditional_model_is_refused_with_its_value(guidance):
    with pytest.raises(ValueError, match=f"guidance must be 1 for an unconditional model, got {guidance}"):
        pictures([1], guidance=guidance)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_picture_is_bitwise_the_same_however_it_is_asked_for(sampler):
    seeds, labels = [11, 22, 33, 44, 55, 66], [0, 1, 2, 3, 0, 1]
    options = {"sampler": sampler, "guidance": 2.0}
    model = small_unet(num_classes=3)
    together = pictures(seeds, labels, model, **options)
    alone = torch.cat([pictures([seed], [label], model, **options) for seed, label in zip(seeds, labels, strict=True)])
    backwards = pictures(seeds[::-1], labels[::-1], model, **options).flip(0)
    shifted = pictures([7, *seeds], [2, *labels], model, **options)[1:]

    assert torch.equal(alone, together)
    assert torch.equal(backwards, together)
    assert torch.equal(shifted, together)
    assert len({picture.numpy().tobytes() for picture in together}) == 6


def test_every_float_is_bitwise_the_same_for_one_thread_and_two():
    model, diffusion, config = small_unet(base_channels=32, image_size=16), process(100), SamplerConfig(steps=1)
    *_, one = sample_trajectory(model, diffusion, [1, 2, 3, 4], None, config)
    torch.set_num_threads(2)
    *_, two = sample_trajectory(model, diffusion, [1, 2, 3, 4], None, config)

    assert torch.equal(one, two)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_float_on_the_way_is_bitwise_the_same_at_any_position(sampler):
    model, diffusion, config = small_unet(), process(100), SamplerConfig(sampler=sampler, steps=5)
    forwards = list(sample_trajectory(model, diffusion, [1, 2, 3, 4], None, config))
    turned = list(sample_trajectory(model, diffusion, [3, 4, 1, 2], None, config))

    assert torch.equal(torch.stack(forwards), torch.stack(turned).roll(2, dims=1))


def test_sampling_neither_reads_nor_changes_the_global_random_state():
    model = small_unet()
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), pictures([1, 2], model=model, sampler="ddpm")
    untouched = torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)

    assert untouched
    assert torch.equal(pictures([1, 2], model=model, sampler="ddpm"), first)


def test_a_network_in_training_mode_is_refused_because_of_its_dropout():
    with pytest.raises(ValueError, match="eval mode"):
        pictures([1], model=small_unet().train())


def test_a_trajectory_starts_from_the_seeds_own_noise_and_yields_every_step():
    config = SamplerConfig(steps=7)
    start, *rest = sample_trajectory(small_unet(), process(100), [5, 6], None, config)
    noise = [generator(seed, "sample", step=101).standard_normal((3, 8, 8), dtype="float32") for seed in (5, 6)]

    assert torch.equal(start, torch.stack([torch.from_numpy(draw) for draw in noise]))
    assert len(rest) == 7


def test_pictures_are_the_last_step_of_the_trajectory_as_pixels():
    model, diffusion, config = small_unet(), process(100), SamplerConfig(steps=3)
    *_, last = sample_trajectory(model, diffusion, [1, 2, 3, 4], None, config)

    assert torch.equal(pictures([1, 2, 3, 4], model=model), to_uint8(last))


@pytest.mark.parametrize(("num", "sizes"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_pictures_come_in_chunks_and_padding_is_never_shown(num, sizes):
    model, config = small_unet(), SamplerConfig(steps=1)
    chunks = list(sample_images(model, process(100), range(num), None, config, CHUNK))

    assert [len(chunk) for chunk in chunks] == sizes
    assert all(chunk.dtype == torch.uint8 for chunk in chunks)


@pytest.mark.parametrize("num", [1, 4, 6])
def test_every_network_call_has_the_same_shape(num):
    model, shapes = small_unet(), set()
    model.register_forward_hook(lambda _, arguments, __: shapes.add(tuple(arguments[0].shape)))
    pictures(list(range(num)), model=model)

    assert shapes == {(CHUNK, 3, 8, 8)}


def test_ddim_of_one_step_and_of_many_start_from_the_same_noise():
    model, diffusion = small_unet(), process(100)
    starts = [
        next(sample_trajectory(model, diffusion, [5], None, SamplerConfig(sampler=sampler, steps=steps)))
        for sampler, steps in [("ddim", 1), ("ddim", 50), ("ddpm", 100)]
    ]

    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("wrong", [-1, 4, 1000])
def test_a_label_out_of_range_is_refused_with_its_value(wrong):
    with pytest.raises(ValueError, match=rf"labels must be 0 to 2 \(or 3: any\), got {wrong}"):
        pictures([1, 2], [0, wrong])


def test_a_label_out_of_range_is_refused_before_any_picture_is_made():
    model, labels = small_unet(num_classes=3), [0, 0, 0, 0, 9]
    images = sample_images(model, process(100), range(5), labels, SamplerConfig(steps=1), CHUNK)

    with pytest.raises(ValueError, match="got 9"):
        next(images)


def test_labels_for_an_unconditional_model_are_refused():
    with pytest.raises(ValueError, match="the model is unconditional and takes no labels, got"):
        pictures([1], [0], model=small_unet())


def test_a_conditional_model_asks_for_labels_and_says_how_many_classes():
    with pytest.raises(ValueError, match="labels must be given: the model has 3 classes"):
        pictures([1], model=small_unet(num_classes=3))


def test_labels_that_are_not_one_a_seed_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="labels must be one a seed: got 3 for 2 seeds"):
        pictures([1, 2], [0, 0, 0])


def test_a_trajectory_with_one_label_for_two_seeds_is_refused():
    model = small_unet(num_classes=3)

    with pytest.raises(ValueError, match="labels"):
        list(sample_trajectory(model, process(100), [1, 2], [0], SamplerConfig(steps=1)))


def test_more_steps_than_the_model_has_timesteps_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"steps must be 1 to 100 \(the model's timesteps\), got 101"):
        pictures([1], steps=101)


@pytest.mark.parametrize("chunk", [0, -1])
def test_an_impossible_chunk_is_refused_with_its_value(chunk):
    with pytest.raises(ValueError, match=f"chunk must be at least 1, got {chunk}"):
        list(sample_images(small_unet(), process(100), [1], None, SamplerConfig(steps=1), chunk))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, got 'euler'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance": -0.5}, "guidance must be at least 0 and finite, got -0.5"),
        ({"guidance": float("nan")}, "guidance must be at least 0 and finite, got nan"),
    ],
)
def test_an_impossible_sampler_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)
