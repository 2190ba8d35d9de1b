from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process import CLEAN, Diffusion, DiffusionConfig, q_sample
from diffusion.restore import (
    RestoreConfig,
    begin_at,
    damaged,
    first_timestep,
    inpaint,
    repaint_walk,
    restore_images,
)
from diffusion.samplers import eps_denoiser, leading_timesteps
from diffusion.seeding import generator
from diffusion.unet import UNet, UNetConfig


def process(**options):
    return Diffusion(DiffusionConfig(**options))


def unit(shape, *key):
    return torch.from_numpy(generator(0, *key).standard_normal(shape))


def numbered_noise(shape):
    return lambda k: unit(shape, "noise", k)


def pictures(n=5, side=8, channels=1):
    return torch.from_numpy(generator(0, "pictures").integers(0, 256, (n, channels, side, side))).to(torch.uint8)


def network(**options):
    """A small network whose answer is not zero, as that of an untrained one is."""
    torch.manual_seed(0)
    shape = {"base_channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "dropout": 0.0}
    unet = UNet(UNetConfig(**shape, attention_resolutions=(), image_size=8, image_channels=1, **options))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


def exact_denoiser(x0, diffusion):
    """Knows the picture: names the noise that is in any x_t."""

    def eps_hat(x, t):
        alpha_bar = diffusion.alpha_bar_at(t)
        return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    return eps_denoiser(eps_hat, diffusion, clip=False)


@given(
    steps=st.integers(1, 30),
    jump=st.integers(1, 12),
    resamples=st.integers(1, 4),
)
def test_a_walk_visits_every_step_as_often_as_asked_and_ends_clean(steps, jump, resamples):
    timesteps = leading_timesteps(300, steps)
    walk = repaint_walk(timesteps, jump, resamples)
    downward = [(a, b) for a, b in pairwise(walk) if b < a]
    upward = [(a, b) for a, b in pairwise(walk) if b > a]

    assert walk[0] == timesteps[0]
    assert walk[-1] == CLEAN
    assert sorted(downward) == sorted(list(zip(timesteps, [*timesteps[1:], CLEAN], strict=True)) * resamples)
    assert len(upward) == (resamples - 1) * -(-steps // jump)
    assert all([*timesteps, CLEAN].index(a) - timesteps.index(b) <= jump for a, b in upward)


def test_a_walk_without_resampling_is_the_samplers_own():
    assert repaint_walk([9, 6, 3, 0], jump=2, resamples=1) == [9, 6, 3, 0, CLEAN]


def test_a_walk_goes_back_and_forth_over_each_stretch():
    assert repaint_walk([9, 6, 3, 0], jump=2, resamples=2) == [9, 6, 3, 9, 6, 3, 0, CLEAN, 3, 0, CLEAN]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_with_a_perfect_denoiser_inpainting_gives_back_the_picture(schedule, variance):
    diffusion = process(num_timesteps=100, schedule=schedule, variance=variance)
    x0 = unit((3, 1, 8, 8), "x0").clamp(-1, 1)
    keep = unit((3, 1, 8, 8), "keep") > 0
    walk = repaint_walk(leading_timesteps(100, 10), jump=3, resamples=3)
    given_picture = torch.where(keep, x0, 0.3)
    *_, last = inpaint(exact_denoiser(x0, diffusion), given_picture, keep, walk, diffusion, numbered_noise(x0.shape))

    torch.testing.assert_close(last, x0)


def test_what_is_known_is_as_noisy_as_the_rest_at_every_step():
    diffusion = process(num_timesteps=100)
    x0 = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    keep = torch.tensor([True, False]).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    walk = repaint_walk(leading_timesteps(100, 10), jump=4, resamples=2)
    states = list(inpaint(exact_denoiser(x0, diffusion), x0, keep, walk, diffusion, numbered_noise(x0.shape)))

    assert len(states) == len(walk) - 1
    for x, t in zip(states, walk[1:], strict=True):
        alpha_bar = diffusion.alpha_bar_at(t)
        for column in (0, 1):
            assert x[..., column].mean().item() == pytest.approx(alpha_bar.sqrt().item() * 0.5, abs=0.06)
            assert x[..., column].var().item() == pytest.approx(1 - alpha_bar.item(), abs=0.09)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"learned_variance": True}])
def test_pixels_that_are_kept_come_back_to_the_bit(options):
    learned = {"variance": "learned", "loss": "hybrid"} if "learned_variance" in options else {}
    images, keep = pictures(), unit((5, 1, 8, 8), "keep") > 0
    config = RestoreConfig(steps=4, jump=2, resamples=2)
    diffusion = process(num_timesteps=50, **learned)
    mended = torch.stack(list(restore_images(network(**options), diffusion, images, keep, range(5), config, chunk=2)))

    assert torch.equal(mended[keep], images[keep])
    assert not torch.equal(mended, images)


@pytest.mark.parametrize(
    "options", [{}, {"noise_std": 20.0}, {"strength": 0.8, "sampler": "dpmpp"}, {"sampler": "heun"}]
)
@pytest.mark.parametrize("masked", [True, False])
def test_a_picture_is_mended_alike_alone_and_among_others(options, masked):
    images, model, diffusion = pictures(), network(), process(num_timesteps=50)
    keep = (unit((5, 1, 8, 8), "keep") > 0) if masked else None
    config = RestoreConfig(steps=6, jump=2, resamples=2, **options)

    def mend(rows):
        rows_keep = None if keep is None else keep[rows]
        return list(restore_images(model, diffusion, images[rows], rows_keep, rows, config, chunk=2))

    together = mend([0, 1, 2, 3, 4])

    assert len(together) == 5
    assert torch.equal(mend([3])[0], together[3])
    assert torch.equal(mend([4, 0])[0], together[4])


@given(noise_std=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_a_noisy_picture_is_brought_to_the_very_law_of_x_t(noise_std, seed):
    diffusion = process(schedule="cosine")
    config = RestoreConfig(noise_std=noise_std * 127.5)
    t = first_timestep(diffusion, config) if noise_std else 300
    x0 = torch.full((20_000, 1, 1, 1), -0.4, dtype=torch.float64)
    noisy = x0 + noise_std * unit(x0.shape, "damage", seed)
    x_t = begin_at(diffusion, noisy, t, noise_std, unit(x0.shape, "more", seed))
    alpha_bar = diffusion.alpha_bar_at(t)

    assert x_t.mean().item() == pytest.approx(-0.4 * alpha_bar.sqrt().item(), abs=0.03)
    assert x_t.var().item() == pytest.approx(1 - alpha_bar.item(), rel=0.05)


def test_a_clean_picture_begins_as_a_sample_of_the_forward_process():
    diffusion, x0, eps = process(), unit((2, 1, 4, 4), "x0"), unit((2, 1, 4, 4), "eps")

    torch.testing.assert_close(begin_at(diffusion, x0, 400, 0.0, eps), q_sample(diffusion.alpha_bar_at(400), x0, eps))


def test_the_way_back_begins_no_later_than_the_noise_demands():
    diffusion = process(schedule="cosine")
    ratio = ((1 - diffusion.alphas_cumprod) / diffusion.alphas_cumprod).sqrt() * 127.5
    t = first_timestep(diffusion, RestoreConfig(noise_std=40))

    assert ratio[t] >= 40 > ratio[t - 1]


@pytest.mark.parametrize(("strength", "t"), [(1.0, 999), (0.5, 499), (0.001, 0), (1e-9, 0)])
def test_strength_is_how_much_of_the_chain_is_walked(strength, t):
    assert first_timestep(process(), RestoreConfig(strength=strength)) == t


def test_begun_in_pure_noise_a_picture_without_snr_is_still_finite():
    diffusion = process(num_timesteps=20, schedule="cosine", zero_terminal_snr=True, prediction="v")
    config = RestoreConfig(steps=5, strength=1.0, spacing="trailing")
    mended = list(restore_images(network(), diffusion, pictures(), None, range(5), config, chunk=5))

    assert torch.equal(
        torch.stack(mended),
        torch.stack(list(restore_images(network(), diffusion, 255 - pictures(), None, range(5), config, chunk=5))),
    )


def test_the_box_hides_the_middle_quarter_of_the_picture():
    images = pictures()
    hidden, keep = damaged(images, RestoreConfig(damage="box"), torch.zeros(images.shape))

    assert (~keep).sum().item() == 5 * 16
    assert not keep[:, :, 2:6, 2:6].any()
    assert torch.equal(hidden[keep], images[keep])
    assert (hidden[~keep] == 127).all()


def test_noise_is_of_the_standard_deviation_asked_for():
    grey = torch.full((200, 1, 8, 8), 128, dtype=torch.uint8)
    noisy, keep = damaged(grey, RestoreConfig(damage="noise", noise_std=20), unit(grey.shape, "n").float())

    assert keep is None
    assert noisy.float().std().item() == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("side", [7, 8, 32])
def test_blur_keeps_the_mean_and_takes_the_detail(side):
    images = pictures(side=side)
    blurred, keep = damaged(images, RestoreConfig(damage="blur"), torch.zeros(images.shape))

    assert keep is None
    assert blurred.shape == images.shape
    assert blurred.double().mean().item() == pytest.approx(images.double().mean().item(), abs=6)
    assert blurred.double().std() < 0.75 * images.double().std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damage": "fire"}, "damage must be one of auto, none, box, noise, blur, got 'fire'"),
        ({"damage": "noise"}, "noise_std must be above 0 with damage=noise, got 0"),
        ({"damage": "box", "noise_std": 9.0}, "noise_std must be 0 with damage=box, got 9.0"),
        ({"noise_std": -1}, r"noise_std must lie in \[0, 255\], got -1"),
        ({"noise_std": float("nan")}, r"noise_std must lie in \[0, 255\], got nan"),
        ({"strength": 0.0}, r"strength must lie in \(0, 1\], got 0.0"),
        ({"strength": 1.5}, r"strength must lie in \(0, 1\], got 1.5"),
        ({"jump": 0}, "jump must be at least 1, got 0"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"guidance": 2.0}, "guidance must be 1 to restore"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RestoreConfig(**options)


def test_a_model_in_training_and_missing_seeds_are_refused():
    diffusion, config = process(num_timesteps=50), RestoreConfig(steps=2)

    with pytest.raises(ValueError, match="must be in eval mode"):
        next(restore_images(network().train(), diffusion, pictures(), None, range(5), config, chunk=2))
    with pytest.raises(ValueError, match="seeds must be one a picture: got 4 for 5"):
        next(restore_images(network(), diffusion, pictures(), None, range(4), config, chunk=2))


def test_pictures_and_masks_of_another_size_are_refused():
    model, diffusion, config = network(), process(num_timesteps=50), RestoreConfig(steps=2)

    with pytest.raises(ValueError, match=r"pictures must be of shape \(1, 8, 8\), got \(1, 9, 9\)"):
        next(restore_images(model, diffusion, pictures(side=9), None, range(5), config, chunk=2))
    with pytest.raises(ValueError, match=r"masks must be of shape \(5, 1, 8, 8\), got \(5, 1, 8, 7\)"):
        next(restore_images(model, diffusion, pictures(), torch.ones(5, 1, 8, 7).bool(), range(5), config, chunk=2))
