import numpy as np
import pytest
import torch
from small_training import NUM_LANES, batch, network, noisy, train_config

from diffusion.data.order import lanes_of
from diffusion.noisy import draw_noise
from diffusion.process import Diffusion, DiffusionConfig


def test_the_parts_of_a_batch_are_its_samples_in_order():
    whole = next(noisy(network(num_classes=3), train_config(), rank=0))
    parts = whole.parts(5)

    for name in ("images", "t", "eps"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.step for part in parts} == {whole.step}


@pytest.mark.parametrize("num_workers", [2, 3, 8])
def test_all_that_is_random_in_a_step_is_the_same_for_any_number_of_workers(num_workers):
    config, unet = train_config(label_dropout=0.5), network(num_classes=3)

    def by_lane(share):
        drawn = next(noisy(unet, config, 5, 6, **share))
        lanes = lanes_of(share["rank"], share["num_workers"], NUM_LANES)
        parts = (drawn.images, drawn.labels, drawn.t, drawn.eps)
        return dict(zip(lanes, zip(*(part.split(config.lane_batch) for part in parts), strict=True), strict=True))

    whole = by_lane({"rank": 0, "num_workers": 1})
    for rank in range(num_workers):
        for lane, parts in by_lane({"rank": rank, "num_workers": num_workers}).items():
            assert all(torch.equal(part, expected) for part, expected in zip(parts, whole[lane], strict=True))


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}])
def test_another_seed_or_step_draws_other_noise(change):
    unet, step = network(), change.pop("step", 0)
    first = next(noisy(unet, train_config()))
    other = next(noisy(unet, train_config(**change), step, step + 1))

    assert not torch.equal(first.t, other.t)
    assert not torch.equal(first.eps, other.eps)


def test_two_lanes_draw_different_noise():
    drawn = next(noisy(network(), train_config(global_batch=NUM_LANES)))

    assert len({eps.numpy().tobytes() for eps in drawn.eps}) == NUM_LANES


def test_noise_is_standard_normal_and_every_timestep_is_as_likely():
    drawn = next(noisy(network(), train_config(global_batch=8000)))
    values = drawn.eps.double()

    assert abs(values.mean()) < 5 / values.numel() ** 0.5
    assert abs(values.var() - 1) < 5 * (2 / values.numel()) ** 0.5
    assert drawn.t.min() >= 0
    assert drawn.t.max() <= 999
    assert np.abs(np.bincount(drawn.t.numpy() // 100, minlength=10) - 800).max() < 5 * 800**0.5


def test_half_of_the_pictures_are_mirrored_and_the_others_left_alone():
    config = train_config(global_batch=2000)
    before, after = batch(0, config).images, next(noisy(network(), config)).images
    kept = (after == before).all(dim=(1, 2, 3))
    mirrored = (after == before.flip(3)).all(dim=(1, 2, 3))

    assert (kept ^ mirrored).all()
    assert abs(mirrored.sum() - 1000) < 5 * 500**0.5


def test_without_flip_no_picture_is_mirrored():
    config = train_config(global_batch=400, flip=False)

    assert torch.equal(next(noisy(network(), config)).images, batch(0, config).images)


@pytest.mark.parametrize("label_dropout", [0, 0.1, 0.5])
def test_that_share_of_the_labels_becomes_the_null_class(label_dropout):
    config, unet = train_config(global_batch=4000, label_dropout=label_dropout), network(num_classes=3)
    before, after = batch(0, config, num_classes=3).labels, next(noisy(unet, config)).labels
    dropped = after != before

    assert (after[dropped] == 3).all()
    assert abs(dropped.sum() - 4000 * label_dropout) <= 5 * (4000 * label_dropout * (1 - label_dropout)) ** 0.5


def test_dropping_labels_changes_nothing_else_that_is_drawn():
    unet = network(num_classes=3)
    with_labels, without = (next(noisy(unet, train_config(label_dropout=share))) for share in (0, 0.9))

    assert torch.equal(with_labels.eps, without.eps)
    assert torch.equal(with_labels.images, without.images)


def test_a_picture_without_a_label_is_learned_from_as_one_of_any_class():
    config, unet = train_config(label_dropout=0.0), network(num_classes=3)
    given = batch(0, config, num_classes=3)
    given.labels[::2] = -1
    (drawn,) = draw_noise([given], config, unet, Diffusion(DiffusionConfig()))

    assert (drawn.labels[::2] == 3).all()
    assert torch.equal(drawn.labels[1::2], given.labels[1::2])
    assert unet(drawn.eps, drawn.t, drawn.labels).isfinite().all()
