import pytest
import torch
from torch import nn

from diffusion.ema import Ema


def small_model():
    """A model with buffers: the running mean and variance of its BatchNorm."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    move(model, seed=0)
    return model


@torch.no_grad()
def move(model, seed):
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draws))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999])
def test_the_average_follows_the_recursion(decay):
    model = small_model()
    ema = Ema(model, decay)
    expected = {name: value.double() for name, value in weights(model).items()}
    for k in range(30):
        move(model, seed=k + 1)
        ema.update()
        keep = min(decay, (1 + k) / (10 + k))
        expected = {name: keep * expected[name] + (1 - keep) * value for name, value in weights(model).items()}

    for name, average in ema.state_dict().items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_before_any_update_the_average_is_the_model():
    model = small_model()
    averages = Ema(model, 0.9).state_dict()

    assert all(torch.equal(averages[name], value) for name, value in weights(model).items())


def test_an_update_does_not_move_the_model():
    model = small_model()
    ema, before = Ema(model, 0.9), weights(model)
    move(model, seed=1)
    moved = weights(model)
    ema.update()

    assert all(torch.equal(value, moved[name]) for name, value in weights(model).items())
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_still_model_is_its_own_average():
    model = small_model()
    ema = Ema(model, 0.999)
    for _ in range(100):
        ema.update()

    assert all(torch.equal(ema.averages[name], value) for name, value in weights(model).items())


def test_warm_up_lets_the_random_start_fade_within_a_hundred_updates():
    model = small_model()
    ema, start = Ema(model, 0.9999), weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for _ in range(100):
        ema.update()
    left = max((ema.averages[name] / value).abs().max().item() for name, value in start.items())

    assert left < 1e-9  # prod (1 + k) / (10 + k); without warm-up 0.99 of the start would be left


def test_the_warm_up_ends_at_the_decay():
    model = small_model()
    ema = Ema(model, 0.5)
    ema.load(weights(model), num_updates=8)
    before = weights(model)["0.weight"]
    move(model, seed=1)
    ema.update()

    torch.testing.assert_close(ema.averages["0.weight"], (before + weights(model)["0.weight"]) / 2)


def test_only_parameters_are_averaged():
    model = small_model()
    ema = Ema(model, 0.9)
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    ema.update()

    assert set(ema.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not any("running" in name for name in ema.state_dict())


def test_averages_load_into_a_model_without_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ema = Ema(model, 0.9)
    move(model, seed=1)
    ema.update()
    model.load_state_dict(ema.state_dict())

    assert all(torch.equal(value, ema.averages[name]) for name, value in weights(model).items())


def test_a_resumed_average_is_bitwise_the_unbroken_one():
    unbroken_model, first_model, second_model = small_model(), small_model(), small_model()
    unbroken, first = Ema(unbroken_model, 0.99), Ema(first_model, 0.99)
    for k in range(7):
        move(unbroken_model, seed=k)
        unbroken.update()
    for k in range(4):
        move(first_model, seed=k)
        first.update()
    resumed = Ema(second_model, 0.99)
    resumed.load(first.state_dict(), first.num_updates)
    for k in range(4, 7):
        move(second_model, seed=k)
        resumed.update()

    assert resumed.num_updates == unbroken.num_updates == 7
    assert all(torch.equal(resumed.averages[name], average) for name, average in unbroken.averages.items())


def test_a_loaded_average_does_not_share_memory_with_what_it_was_loaded_from():
    model = small_model()
    ema, saved, untouched = Ema(model, 0.9), weights(model), weights(model)
    ema.load(saved, num_updates=0)
    move(model, seed=1)
    ema.update()

    assert all(torch.equal(value, untouched[name]) for name, value in saved.items())


def test_a_missing_average_is_refused_by_name():
    model = small_model()
    saved = weights(model)
    del saved["2.bias"]

    with pytest.raises(ValueError, match=r"2\.bias should be"):
        Ema(model, 0.9).load(saved, num_updates=3)


def test_an_average_of_another_shape_is_refused():
    model = small_model()
    saved = {name: value.flatten()[:1] for name, value in weights(model).items()}

    with pytest.raises((ValueError, RuntimeError)):
        Ema(model, 0.9).load(saved, num_updates=3)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_decay_is_refused_with_its_value(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\), got {decay}"):
        Ema(small_model(), decay)
