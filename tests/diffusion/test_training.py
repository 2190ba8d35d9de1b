import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_training import (
    bitwise_equal,
    gradient,
    network,
    noisy,
    snapshot,
    train,
    train_config,
    training_of,
    with_bad_step,
)

from diffusion.loss import loss
from diffusion.noisy import NoisyBatch
from diffusion.train_config import learning_rate
from diffusion.training import backward, fit


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


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30], ids=["inf", "nan", "overflow"])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_changed(value):
    training = train(training_of(network(), train_config()), 0, 2)
    before = snapshot(training)
    good = next(noisy(training.unet, training.config, 2, 3))
    bad = NoisyBatch(2, good.images, None, good.t, torch.full_like(good.eps, value))
    with pytest.raises(FloatingPointError, match=r"is not finite at step 2, 1 in a row; lower lr=0.001"):
        fit(training, [bad], lambda report: None)

    assert bitwise_equal(snapshot(training), before)


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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_blocks_instead_of_keeping_them_trains_the_same_network(dropout):
    kept, recomputed = (training_of(network(dropout=dropout), train_config()) for _ in range(2))
    recomputed.unet.checkpointing = True

    assert bitwise_equal(snapshot(train(recomputed, 0, 2)), snapshot(train(kept, 0, 2)))
