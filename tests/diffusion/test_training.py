import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffusion.checkpoint import load_checkpoint, save_checkpoint
from diffusion.data.loader import Batch
from diffusion.data.order import lanes_of
from diffusion.files import Folder
from diffusion.loss import loss
from diffusion.noisy import NoisyBatch, draw_noise
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.seeding import generator
from diffusion.train_config import TrainConfig, learning_rate
from diffusion.training import Training, backward, fit
from diffusion.unet import UNet, UNetConfig

NUM_LANES = 8


def network(num_classes=0, dropout=0.0, seed=0, **options):
    """A small network with no weight at zero, so that every gradient is alive."""
    shape = {"image_size": 8, "base_channels": 8, "norm_groups": 4, "channel_mults": (1, 2), "num_res_blocks": 1}
    unet = UNet(UNetConfig(num_classes=num_classes, dropout=dropout, **{**shape, **options}))
    draws = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    return unet


def train_config(**options):
    defaults = {"global_batch": 16, "num_lanes": NUM_LANES, "precision": "fp32", "warmup_steps": 2, "lr": 1e-3}
    return TrainConfig(**{**defaults, **options})


def batch(step, config, rank=0, num_workers=1, num_classes=0):
    """A worker's share of a global batch whose pictures depend on step and lane alone."""
    lanes, images, labels = lanes_of(rank, num_workers, config.num_lanes), [], []
    for lane in lanes:
        draw = generator(0, "test pictures", step=step, lane=lane)
        images.append(draw.integers(0, 256, (config.lane_batch, 3, 8, 8), dtype=np.uint8))
        labels.append(draw.integers(0, max(1, num_classes), config.lane_batch))
    return Batch(
        step,
        lanes,
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(np.concatenate(labels)) if num_classes else None,
    )


def noisy(unet, config, start=0, stop=1, **share):
    steps = (batch(step, config, num_classes=unet.config.num_classes, **share) for step in range(start, stop))
    return draw_noise(steps, config, unet, Diffusion(DiffusionConfig()))


def training_of(unet, config, rank=0, num_workers=1, micro_batch=0):
    return Training(unet, Diffusion(DiffusionConfig()), config, rank, num_workers, micro_batch=micro_batch)


def train(training, start, stop, on_step=lambda report: None):
    fit(training, noisy(training.unet, training.config, start, stop), on_step)
    return training


def snapshot(training):
    """Copies of everything that a step changes: weights, averages and the optimiser's state."""
    checkpoint = training.checkpoint()
    groups = [checkpoint.model, *checkpoint.emas, checkpoint.optimizer]
    return checkpoint.step, [{name: tensor.clone() for name, tensor in group.items()} for group in groups]


def bitwise_equal(a, b):
    (step_a, groups_a), (step_b, groups_b) = a, b
    return step_a == step_b and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
        for x, y in zip(groups_a, groups_b, strict=True)
    )


def gradient(config, num_workers, num_classes=0, micro_batch=0):
    """What DDP would give: the mean over workers of the gradients of their shares."""
    total = None
    for rank in range(num_workers):
        unet = network(num_classes)
        training = training_of(unet, config, rank, num_workers, micro_batch)
        backward(training, next(noisy(unet, config, rank=rank, num_workers=num_workers)))
        flat = torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])
        total = flat if total is None else total + flat
    return total / num_workers


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("num_workers", [2, 3, 4, 8])
def test_the_mean_of_all_workers_gradients_is_that_of_one_worker(num_workers, num_classes):
    config = train_config()
    one, many = (gradient(config, w, num_classes) for w in (1, num_workers))

    assert one.abs().max() > 0
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8, 16, 100])
def test_the_gradient_is_the_same_however_few_samples_the_network_is_given_at_once(micro_batch, num_workers):
    config = train_config()
    whole, in_parts = (gradient(config, num_workers, num_classes=3, micro_batch=size) for size in (0, micro_batch))

    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_the_network_is_never_given_more_than_a_micro_batch():
    unet, sizes = network(), []
    unet.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    backward(training_of(unet, train_config(), micro_batch=5), next(noisy(unet, train_config())))

    assert sizes == [5, 5, 5, 1]


def test_the_parts_of_a_batch_are_its_samples_in_order():
    whole = next(noisy(network(num_classes=3), train_config(), rank=0))
    parts = whole.parts(5)

    for name in ("images", "t", "eps"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.step for part in parts} == {whole.step}


def test_the_loss_of_one_worker_is_the_mean_over_the_global_batch():
    config, unet = train_config(lr=1e-30), network()
    training, drawn = training_of(unet, config), next(noisy(unet, config))
    x0 = drawn.images / 127.5 - 1
    expected = loss(training.diffusion, unet, x0, drawn.t, drawn.eps, None)
    reports = []
    fit(training, [drawn], reports.append)

    torch.testing.assert_close(reports[0].losses, expected.detach())
    torch.testing.assert_close(reports[0].loss, expected.detach().mean())
    assert torch.equal(reports[0].t, drawn.t)


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


def test_training_on_a_fixed_batch_lowers_its_loss():
    unet, config = network(), train_config(lr=3e-3, steps=60)
    training, fixed = training_of(unet, config), next(noisy(unet, config))
    before = backward(training, fixed).mean().item()
    losses = []
    again = (NoisyBatch(step, fixed.images, None, fixed.t, fixed.eps) for step in range(config.steps))
    fit(training, again, lambda report: losses.append(report.loss.item()))

    assert losses[0] == pytest.approx(before)
    assert backward(training, fixed).mean().item() < 0.6 * before
    assert training.step == 60


def test_every_step_is_reported_with_its_number_and_learning_rate():
    config, reports = train_config(warmup_steps=4), []
    train(training_of(network(), config), 2, 7, reports.append)

    assert [report.step for report in reports] == [3, 4, 5, 6, 7]
    assert [report.lr for report in reports] == [learning_rate(step, config) for step in range(2, 7)]
    assert all(report.loss > 0 and report.grad_norm > 0 for report in reports)


def test_the_gradient_is_clipped_and_its_whole_norm_reported():
    reports, unet = [], network()
    train(training_of(unet, train_config(grad_clip=1e-3)), 0, 1, reports.append)
    clipped = torch.cat([parameter.grad.flatten() for parameter in unet.parameters()]).norm().item()

    assert reports[0].grad_norm > 0.01
    assert clipped == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.3},
        {"dropout": 0.3, "channels_last": True},
        {"dropout": 0.3, "precision": "bf16"},
        {"dropout": 0.3, "rank": 1, "num_workers": 3},
    ],
    ids=["plain", "dropout", "channels_last", "bf16", "second of three workers"],
)
def test_a_resumed_run_is_bitwise_the_unbroken_one(options, tmp_path):
    config = train_config(
        ema_decays=(0.9, 0.999), ema_stds=(0.1,), decay="cosine", steps=6, precision=options.get("precision", "fp32")
    )
    share = {name: options[name] for name in ("rank", "num_workers") if name in options}
    layout = torch.channels_last if options.get("channels_last") else torch.contiguous_format

    def fresh(seed):
        unet = network(dropout=options.get("dropout", 0.0), seed=seed).to(memory_format=layout)
        return training_of(unet, config, **share)

    def run(training, start, stop):
        fit(training, noisy(training.unet, config, start, stop, **share), lambda report: None)
        return training

    unbroken = run(fresh(seed=0), 0, 6)
    save_checkpoint(Folder(tmp_path).write, run(fresh(seed=0), 0, 3).checkpoint())
    torch.manual_seed(random.randrange(2**32))  # another process has another global state
    resumed = fresh(seed=1)
    resumed.resume(load_checkpoint(Folder(tmp_path).read))

    assert resumed.step == 3
    assert bitwise_equal(snapshot(run(resumed, 3, 6)), snapshot(unbroken))


def test_dropout_is_really_at_work_in_training():
    config = train_config()
    plain, dropped = (train(training_of(network(dropout=p), config), 0, 1) for p in (0.0, 0.3))

    assert not bitwise_equal(snapshot(plain), snapshot(dropped))


def test_dropout_differs_by_rank_and_step_and_repeats_for_the_same():
    config, unet = train_config(), network(dropout=0.3)
    drawn = next(noisy(unet, config))
    later = NoisyBatch(1, drawn.images, None, drawn.t, drawn.eps)
    losses = [
        backward(training_of(unet, config, rank, num_workers=2), shown).sum().item()
        for rank, shown in [(0, drawn), (1, drawn), (0, later), (0, drawn)]
    ]

    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[0]


def test_a_run_does_not_depend_on_the_global_random_state():
    results = []
    for seed in (1, 2):
        training = training_of(network(dropout=0.3), train_config())
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(snapshot(train(training, 0, 2)))

    assert bitwise_equal(*results)


def test_a_checkpoint_of_another_network_is_refused():
    other = train(training_of(network(base_channels=12), train_config()), 0, 1).checkpoint()

    with pytest.raises(ValueError, match="weights are of another network"):
        training_of(network(), train_config()).resume(other)


def test_a_copy_of_a_checkpoint_stays_as_it_is_while_the_training_goes_on():
    training = train(training_of(network(), train_config(ema_stds=(0.1,))), 0, 2)
    copy, then = training.checkpoint().copied(), snapshot(training)
    train(training, 2, 4)

    assert bitwise_equal((copy.step, [copy.model, *copy.emas, copy.optimizer]), then)
    assert not bitwise_equal(snapshot(training), then)


def test_training_on_leaves_the_checkpoint_as_it_was(tmp_path):
    config = train_config()
    save_checkpoint(Folder(tmp_path).write, train(training_of(network(), config), 0, 3).checkpoint())
    checkpoint = load_checkpoint(Folder(tmp_path).read)
    before = {name: tensor.clone() for name, tensor in checkpoint.optimizer.items()}
    resumed = training_of(network(seed=1), config)
    resumed.resume(checkpoint)
    train(resumed, 3, 5)

    assert all(torch.equal(checkpoint.optimizer[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30], ids=["inf", "nan", "overflow"])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_changed(value):
    training = train(training_of(network(), train_config()), 0, 2)
    before = snapshot(training)
    good = next(noisy(training.unet, training.config, 2, 3))
    bad = NoisyBatch(2, good.images, None, good.t, torch.full_like(good.eps, value))
    with pytest.raises(FloatingPointError, match=r"is not finite at step 2, 1 in a row; lower lr=0.001"):
        fit(training, [bad], lambda report: None)

    assert bitwise_equal(snapshot(training), before)


def with_bad_step(training, start, stop, bad_step):
    """The batches of a run; of one step, one sample's noise is not a number."""
    for drawn in noisy(training.unet, training.config, start, stop):
        if drawn.step == bad_step:
            drawn.eps[3] = math.nan
        yield drawn


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_skipped_step_leaves_weights_and_optimiser_as_they_were_and_the_run_goes_on(bad_step):
    training, reports, states = training_of(network(), train_config(on_nan="skip")), [], [None]
    states[0] = snapshot(training)

    def on_step(report):
        reports.append(report)
        states.append(snapshot(training))

    fit(training, with_bad_step(training, 0, 5, bad_step), on_step)
    weights, optimizers = ([groups[i] for _, groups in states] for i in (0, -1))
    moved = [any(not torch.equal(before[name], after[name]) for name in before) for before, after in pairwise(weights)]

    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.skipped for report in reports] == [step == bad_step for step in range(5)]
    assert [not math.isfinite(report.grad_norm) for report in reports] == [step == bad_step for step in range(5)]
    assert moved == [step != bad_step for step in range(5)]
    assert optimizers[bad_step].keys() == optimizers[bad_step + 1].keys()
    assert all(torch.equal(value, optimizers[bad_step + 1][name]) for name, value in optimizers[bad_step].items())
    assert all(tensor.isfinite().all() for group in states[-1][1] for tensor in group.values())


def test_a_run_whose_every_step_is_skipped_stops_all_the_same():
    training = training_of(network(), train_config(on_nan="skip"))
    good = next(noisy(training.unet, training.config, 0, 1))
    bad = [NoisyBatch(step, good.images, None, good.t, good.eps * math.nan) for step in range(20)]
    reports = []
    with pytest.raises(FloatingPointError, match=r"at step 10, 11 in a row"):
        fit(training, bad, reports.append)

    assert len(reports) == 10


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_run_resumed_after_a_skipped_step_is_bitwise_the_unbroken_one(tmp_path, bad_step):
    config = train_config(on_nan="skip", ema_decays=(0.9,), ema_stds=(0.1, 0.2), decay="cosine", steps=6)

    def run(training, start, stop):
        fit(training, with_bad_step(training, start, stop, bad_step), lambda report: None)
        return training

    unbroken = run(training_of(network(dropout=0.3), config), 0, 6)
    save_checkpoint(
        Folder(tmp_path).write, run(training_of(network(dropout=0.3), config), 0, bad_step + 1).checkpoint()
    )
    resumed = training_of(network(dropout=0.3, seed=1), config)
    resumed.resume(load_checkpoint(Folder(tmp_path).read))

    assert bitwise_equal(snapshot(run(resumed, bad_step + 1, 6)), snapshot(unbroken))


def test_a_checkpoint_keeps_every_average_in_the_order_of_the_config():
    config = train_config(ema_decays=(0.0, 0.9), ema_stds=(0.2,))
    training = train(training_of(network(), config), 0, 4)
    checkpoint = training.checkpoint()
    newest, decayed, by_width = checkpoint.emas

    assert all(torch.equal(newest[name], value) for name, value in training.unet.named_parameters())
    assert not any(torch.equal(newest["conv_in.weight"], average["conv_in.weight"]) for average in (decayed, by_width))
    assert not torch.equal(decayed["conv_in.weight"], by_width["conv_in.weight"])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_blocks_instead_of_keeping_them_trains_the_same_network(dropout):
    kept, recomputed = (training_of(network(dropout=dropout), train_config()) for _ in range(2))
    recomputed.unet.checkpointing = True

    assert bitwise_equal(snapshot(train(recomputed, 0, 2)), snapshot(train(kept, 0, 2)))
