import pytest
import torch

from diffusion.process import Diffusion, DiffusionConfig, q_sample, split, to_uint8
from diffusion.samplers import SAMPLERS, SPACINGS
from diffusion.sampling import SamplerConfig, network_denoiser, sample_images, sample_trajectory, timesteps_of
from diffusion.seeding import generator
from diffusion.unet import UNet, UNetConfig

PREDICTIONS = ["eps", "x0", "v"]
CHUNK = 4
STARTING_ANYWHERE = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpmpp", 0.0)]


def process(num_timesteps=1000, **options):
    return Diffusion(DiffusionConfig(num_timesteps=num_timesteps, **options))


def small_unet(scale=1.0, **options):
    """A small network with no weight at zero, in evaluation mode; its answers are about `scale` large."""
    config = UNetConfig(
        **{"image_size": 8, "base_channels": 8, "attention_resolutions": (4,)} | options,
        norm_groups=4,
        channel_mults=(1, 2),
        num_res_blocks=1,
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


def unit_noise(dtype):
    draws = torch.Generator().manual_seed(0)
    return lambda t: torch.randn(4, 3, 8, 8, generator=draws, dtype=dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 500, 999])
@torch.no_grad()
def test_the_denoised_picture_lies_in_range_and_mixes_back_with_its_noise(prediction, t):
    diffusion, x = process(prediction=prediction), 2 * unit_noise(torch.float32)(0)
    x0, eps, _ = network_denoiser(small_unet(), diffusion, None)(x, t)
    mixed = q_sample(diffusion.alpha_bar(torch.tensor([t])), x0, eps)

    assert x0.abs().max() <= 1
    torch.testing.assert_close(mixed, x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_guidance_1_is_the_conditional_model_asked_once():
    model, diffusion, labels = small_unet(num_classes=3), process(prediction="v"), torch.tensor([0, 1, 2, 3])
    x, calls = unit_noise(torch.float32)(0), []
    model.register_forward_hook(lambda *_: calls.append(1))
    x0, *_ = network_denoiser(model, diffusion, labels, guidance=1.0)(x, 500)
    num_calls = len(calls)
    output = model(x, torch.full((4,), 500), labels)
    expected, _ = split("v", diffusion.alpha_bar(torch.full((4,), 500)), x, output)

    assert num_calls == 1
    assert torch.equal(x0, expected.clamp(-1, 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
@torch.no_grad()
def test_guidance_mixes_the_answers_with_and_without_the_label_linearly(prediction, guidance):
    model, diffusion = small_unet(num_classes=3, scale=0.05), process(prediction=prediction)
    x, t = 0.1 * unit_noise(torch.float32)(0), torch.full((4,), 300)
    labels, null = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 3, 3, 3])
    conditional, unconditional = model(x, t, labels), model(x, t, null)
    mixed = (1 - guidance) * unconditional + guidance * conditional
    expected, _ = split(prediction, diffusion.alpha_bar(t), x, mixed)
    x0, *_ = network_denoiser(model, diffusion, labels, guidance)(x, 300)

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


@pytest.mark.parametrize("sampler", SAMPLERS)
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


@pytest.mark.parametrize("num_pictures", [1, 6, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_float_is_bitwise_the_same_for_any_number_of_threads(num_pictures, precision):
    model = small_unet(base_channels=32, image_size=32, num_classes=2, attention_resolutions=(16,))
    seeds, labels = range(num_pictures), [i % 2 for i in range(num_pictures)]
    config = SamplerConfig(steps=1, guidance=1.5, precision=precision)
    drawn = {}
    for threads in (1, 2, 3, 5, 9):
        torch.set_num_threads(threads)
        *_, drawn[threads] = sample_trajectory(model, process(100), seeds, labels, config)

        assert torch.get_num_threads() == threads
    assert all(torch.equal(drawn[threads], drawn[1]) for threads in drawn)


def test_bf16_draws_nearly_the_same_pictures_and_leaves_the_model_as_it_is():
    model = small_unet(base_channels=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = pictures([1, 2, 3], model=model, precision="fp32").float()
    rough = pictures([1, 2, 3], model=model, precision="bf16").float()

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < 3


@pytest.mark.parametrize(
    ("sampler", "zero_terminal_snr", "first"),
    [("ddpm", False, 90), ("ddim", False, 90), ("heun", False, 90), ("dpmpp", False, 99), ("ddpm", True, 99),
     ("ddim", True, 99), ("dpmpp", True, 99), ("heun", True, 90)],
)  # fmt: skip
def test_spacing_is_what_suits_the_sampler_unless_it_is_given(sampler, zero_terminal_snr, first):
    prediction = "v" if zero_terminal_snr else "eps"
    diffusion = process(100, zero_terminal_snr=zero_terminal_snr, prediction=prediction)

    assert timesteps_of(SamplerConfig(sampler=sampler, steps=10), diffusion)[0] == first
    assert timesteps_of(SamplerConfig(sampler=sampler, steps=10, spacing="leading"), diffusion)[0] == 90
    if sampler != "heun":
        assert timesteps_of(SamplerConfig(sampler=sampler, steps=10, spacing="trailing"), diffusion)[0] == 99


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_float_on_the_way_is_bitwise_the_same_at_any_position(sampler):
    model, diffusion, config = small_unet(), process(100), SamplerConfig(sampler=sampler, steps=5)
    forwards = list(sample_trajectory(model, diffusion, [1, 2, 3, 4], None, config))
    turned = list(sample_trajectory(model, diffusion, [3, 4, 1, 2], None, config))

    assert torch.equal(torch.stack(forwards), torch.stack(turned).roll(2, dims=1))


@pytest.mark.parametrize(
    ("sampler", "eta", "spacing"),
    [
        *((sampler, eta, spacing) for spacing in SPACINGS for sampler, eta in STARTING_ANYWHERE),
        ("heun", 0.0, "leading"),
    ],
)
def test_a_trajectory_is_that_of_the_sampler_spacing_and_eta_that_were_asked_for(sampler, eta, spacing):
    model, diffusion = small_unet(), process(100)
    config = SamplerConfig(sampler=sampler, steps=7, spacing=spacing, eta=eta)
    start, *rest = sample_trajectory(model, diffusion, [5, 6], None, config)

    def noise(t):
        draws = [generator(seed, "sample", step=t + 1).standard_normal((3, 8, 8), dtype="float32") for seed in (5, 6)]
        return torch.stack([torch.from_numpy(draw) for draw in draws])

    timesteps, denoise = SPACINGS[spacing](100, 7), network_denoiser(model, diffusion, None)
    with torch.inference_mode():
        expected = list(SAMPLERS[sampler](denoise, noise(100), timesteps, diffusion, noise, eta))

    assert torch.equal(start, noise(100))
    assert torch.equal(torch.stack(rest), torch.stack(expected))
    assert len(rest) == 7


@torch.inference_mode()
def test_a_network_that_learned_its_variance_is_sampled_with_it():
    model, diffusion = small_unet(learned_variance=True), process(100, variance="learned", loss="hybrid")
    config = SamplerConfig(sampler="ddpm", steps=7)
    learned = list(sample_trajectory(model, diffusion, [1, 2], None, config))

    def first_half(x, ts, labels):
        return model(x, ts, labels)[:, :3]

    x, found = learned[0], network_denoiser(model, diffusion, None)(learned[0], 84)
    output = model(x, torch.full((2,), 84))

    torch.testing.assert_close(found.variance_fraction, (output[:, 3:] + 1) / 2)
    torch.testing.assert_close(found.x0, network_denoiser(first_half, process(100), None)(x, 84).x0)
    assert all(x.shape == (2, 3, 8, 8) and x.isfinite().all() for x in learned)


@torch.no_grad()
def test_guidance_mixes_the_means_and_leaves_the_variance_to_the_label():
    model = small_unet(num_classes=3, learned_variance=True)
    diffusion, labels = process(variance="learned", loss="hybrid"), torch.tensor([0, 1, 2, 0])
    x = unit_noise(torch.float32)(0)
    plain, guided = (network_denoiser(model, diffusion, labels, guidance)(x, 500) for guidance in (1.0, 3.0))

    assert torch.equal(plain.variance_fraction, guided.variance_fraction)
    assert not torch.equal(plain.x0, guided.x0)


def test_bf16_gives_almost_the_same_picture_and_not_the_very_same():
    model, diffusion = small_unet(scale=0.1), process(100)
    exact, rounded = (
        list(sample_trajectory(model, diffusion, [1, 2], None, SamplerConfig(steps=5, precision=precision)))[-1]
        for precision in ("fp32", "bf16")
    )

    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)


def test_a_model_of_zero_terminal_snr_is_sampled_from_its_last_timestep():
    diffusion, asked = process(100, zero_terminal_snr=True, prediction="v"), []
    model = small_unet()
    model.register_forward_hook(lambda _, arguments, __: asked.append(arguments[1][0].item()))
    config = SamplerConfig(steps=4, spacing="trailing")
    *_, last = sample_trajectory(model, diffusion, [1, 2], None, config)

    assert asked == [99, 74, 49, 24]
    assert last.isfinite().all()


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
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, dpmpp, heun, got 'euler'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"spacing": "even"}, "spacing must be one of auto, leading, trailing, got 'even'"),
        ({"sampler": "heun", "spacing": "trailing"}, "spacing must be leading for sampler=heun .* got trailing"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"eta": -0.1}, r"eta must lie in \[0, 1\], got -0.1"),
        ({"eta": float("nan")}, r"eta must lie in \[0, 1\], got nan"),
        ({"eta": 0.5, "sampler": "ddpm"}, r"eta must be 0 for sampler=ddpm \(it is ddim's\), got 0.5"),
        ({"eta": 0.5, "sampler": "heun"}, r"eta must be 0 for sampler=heun \(it is ddim's\), got 0.5"),
        ({"guidance": -0.5}, "guidance must be at least 0 and finite, got -0.5"),
        ({"guidance": float("nan")}, "guidance must be at least 0 and finite, got nan"),
    ],
)
def test_an_impossible_sampler_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_who_watches_sees_the_first_chunk_from_pure_noise_to_the_pictures():
    seen, model, config = [], small_unet(), SamplerConfig(steps=3)
    drawn = list(sample_images(model, process(100), range(10), None, config, CHUNK, seen.append))
    noise = generator(0, "sample", step=101).standard_normal((3, 8, 8), dtype="float32")

    assert len(seen) == 1 + 3
    torch.testing.assert_close(seen[0][0], torch.from_numpy(noise), rtol=0, atol=0)
    assert torch.equal(to_uint8(seen[-1]), drawn[0])


def test_a_watched_request_gives_the_same_pictures():
    config, model = SamplerConfig(steps=3), small_unet()
    watched = list(sample_images(model, process(100), range(6), None, config, CHUNK, lambda _: None))

    assert torch.equal(torch.cat(watched), pictures(range(6), model=model))
