import random

import pytest
import torch
from small_training import (
    bitwise_equal,
    network,
    noisy,
    snapshot,
    train,
    train_config,
    training_of,
    with_bad_step,
)

from diffusion.checkpoint import load_checkpoint, save_checkpoint
from diffusion.files import Folder
from diffusion.training import fit


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
