import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffusion.ema import Ema, Snapshot, fixed, power, power_exponent, reconstruct, reconstruction_weights


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
    ema = Ema(model, fixed(decay))
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
    averages = Ema(model, fixed(0.9)).state_dict()

    assert all(torch.equal(averages[name], value) for name, value in weights(model).items())


def test_an_update_does_not_move_the_model():
    model = small_model()
    ema, before = Ema(model, fixed(0.9)), weights(model)
    move(model, seed=1)
    moved = weights(model)
    ema.update()

    assert all(torch.equal(value, moved[name]) for name, value in weights(model).items())
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_still_model_is_its_own_average():
    model = small_model()
    ema = Ema(model, fixed(0.999))
    for _ in range(100):
        ema.update()

    assert all(torch.equal(ema.averages[name], value) for name, value in weights(model).items())


def test_warm_up_lets_the_random_start_fade_within_a_hundred_updates():
    model = small_model()
    ema, start = Ema(model, fixed(0.9999)), weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for _ in range(100):
        ema.update()
    left = max((ema.averages[name] / value).abs().max().item() for name, value in start.items())

    assert left < 1e-9  # prod (1 + k) / (10 + k); without warm-up 0.99 of the start would be left


def test_the_warm_up_ends_at_the_decay():
    model = small_model()
    ema = Ema(model, fixed(0.5))
    ema.load(weights(model), num_updates=8)
    before = weights(model)["0.weight"]
    move(model, seed=1)
    ema.update()

    torch.testing.assert_close(ema.averages["0.weight"], (before + weights(model)["0.weight"]) / 2)


def test_only_parameters_are_averaged():
    model = small_model()
    ema = Ema(model, fixed(0.9))
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    ema.update()

    assert set(ema.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not any("running" in name for name in ema.state_dict())


def test_averages_load_into_a_model_without_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ema = Ema(model, fixed(0.9))
    move(model, seed=1)
    ema.update()
    model.load_state_dict(ema.state_dict())

    assert all(torch.equal(value, ema.averages[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("profile", [fixed(0.99), power(0.1)], ids=["fixed", "power"])
def test_a_resumed_average_is_bitwise_the_unbroken_one(profile):
    unbroken_model, first_model, second_model = small_model(), small_model(), small_model()
    unbroken, first = Ema(unbroken_model, profile), Ema(first_model, profile)
    for k in range(7):
        move(unbroken_model, seed=k)
        unbroken.update()
    for k in range(4):
        move(first_model, seed=k)
        first.update()
    resumed = Ema(second_model, profile)
    resumed.load(first.state_dict(), first.num_updates)
    for k in range(4, 7):
        move(second_model, seed=k)
        resumed.update()

    assert resumed.num_updates == unbroken.num_updates == 7
    assert all(torch.equal(resumed.averages[name], average) for name, average in unbroken.averages.items())


def test_a_loaded_average_does_not_share_memory_with_what_it_was_loaded_from():
    model = small_model()
    ema, saved, untouched = Ema(model, fixed(0.9)), weights(model), weights(model)
    ema.load(saved, num_updates=0)
    move(model, seed=1)
    ema.update()

    assert all(torch.equal(value, untouched[name]) for name, value in saved.items())


def test_a_missing_average_is_refused_by_name():
    model = small_model()
    saved = weights(model)
    del saved["2.bias"]

    with pytest.raises(ValueError, match=r"2\.bias should be"):
        Ema(model, fixed(0.9)).load(saved, num_updates=3)


def test_an_average_of_another_shape_is_refused():
    model = small_model()
    saved = {name: value.flatten()[:1] for name, value in weights(model).items()}

    with pytest.raises((ValueError, RuntimeError)):
        Ema(model, fixed(0.9)).load(saved, num_updates=3)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_decay_is_refused_with_its_value(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\), got {decay}"):
        fixed(decay)


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.972198602303447), (0.10, 6.937203937601809)])
def test_the_exponent_of_a_width_is_the_published_one(std, exponent):
    assert power_exponent(std) == pytest.approx(exponent, rel=1e-12)


@given(st.floats(0.001, 0.288))
def test_the_profile_of_an_exponent_is_as_wide_as_it_was_asked_to_be(std):
    gamma = power_exponent(std)
    mean, mean_square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)

    assert gamma > 0
    assert mean_square - mean**2 == pytest.approx(std**2, rel=1e-4)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_a_power_average_is_the_sum_of_what_was_seen_weighted_by_its_profile(std):
    model, seen = small_model(), []
    ema = Ema(model, power(std))
    for k in range(50):
        move(model, seed=k + 1)
        ema.update()
        seen.append(weights(model)["0.weight"].double())
    edges = (np.arange(51) / 50) ** (power_exponent(std) + 1)
    expected = sum(weight * value for weight, value in zip(np.diff(edges), seen, strict=True))

    torch.testing.assert_close(ema.averages["0.weight"].double(), expected, rtol=0, atol=1e-5)


def test_the_first_update_of_a_power_average_forgets_the_random_start():
    model = small_model()
    ema = Ema(model, power(0.1))
    move(model, seed=1)
    ema.update()

    assert all(torch.equal(ema.averages[name], value) for name, value in weights(model).items())


def walk_with_snapshots(stds, wanted_std, num_updates=1000, every=100):
    """A random walk of the weights, its averages of these widths saved now and then, and one of another width."""
    model, draws = nn.Linear(8, 8), torch.Generator().manual_seed(0)
    emas = {std: Ema(model, power(std)) for std in (*stds, wanted_std)}
    saved = {}
    for update in range(1, num_updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draws))
        for ema in emas.values():
            ema.update()
        if update % every == 0:
            for std, ema in emas.items():
                saved[Snapshot(std, update)] = {name: value.clone() for name, value in ema.averages.items()}
    kept = {snapshot: averages for snapshot, averages in saved.items() if snapshot.std != wanted_std}
    return model, kept, saved


@pytest.mark.parametrize("num_updates", [1000, 700])
@pytest.mark.parametrize("wanted_std", [0.06, 0.08, 0.15])
def test_an_average_that_was_never_kept_is_made_of_those_of_two_other_widths(wanted_std, num_updates):
    model, kept, saved = walk_with_snapshots([0.05, 0.10], wanted_std)
    wanted = Snapshot(wanted_std, num_updates)
    made, truth = reconstruct(list(kept), kept.__getitem__, wanted), saved[wanted]
    error = (made["weight"] - truth["weight"]).norm() / (model.weight - truth["weight"]).norm()

    assert error.item() < 0.02
    assert made.keys() == truth.keys()
    assert made["weight"].dtype == torch.float32


@given(st.lists(st.floats(0.02, 0.25), min_size=1, max_size=3, unique_by=lambda std: round(std, 2)), st.data())
def test_an_average_that_was_kept_is_made_of_itself_alone(stds, data):
    snapshots = [Snapshot(std, num_updates) for std in stds for num_updates in (100, 300, 900)]
    wanted = data.draw(st.sampled_from(snapshots))
    found = reconstruction_weights(snapshots, wanted)

    assert found == pytest.approx([1.0 * (snapshot == wanted) for snapshot in snapshots], abs=1e-4)


@pytest.mark.parametrize("wanted", [Snapshot(0.08, 1000), Snapshot(0.15, 1000), Snapshot(0.06, 500)])
def test_the_weights_fit_the_wanted_profile_best(wanted):
    snapshots = [Snapshot(std, num_updates) for std in (0.05, 0.1) for num_updates in (250, 500, 750, 1000)]
    times = np.linspace(0, 1000, 200_001)

    def profile(snapshot):
        gamma, n = power_exponent(snapshot.std), snapshot.num_updates
        return np.where(times <= n, (gamma + 1) * times**gamma / n ** (gamma + 1.0), 0)

    basis = np.stack([profile(snapshot) for snapshot in snapshots], axis=1)
    fitted = np.linalg.lstsq(basis, profile(wanted), rcond=None)[0]

    assert reconstruction_weights(snapshots, wanted) == pytest.approx(fitted / fitted.sum(), abs=5e-3)


@given(st.floats(0.04, 0.2), st.sampled_from([500, 1000]))
def test_an_average_of_weights_that_never_changed_is_those_weights(std, num_updates):
    snapshots = [Snapshot(kept, at) for kept in (0.05, 0.1) for at in range(100, 1001, 100)]
    made = reconstruct(snapshots, lambda _: {"weight": torch.tensor([3.0, -1.0])}, Snapshot(std, num_updates))

    torch.testing.assert_close(made["weight"], torch.tensor([3.0, -1.0]))


@pytest.mark.parametrize("wanted", [Snapshot(0.05, 1), Snapshot(0.07, 10), Snapshot(0.28, 20), Snapshot(0.02, 20)])
def test_an_average_that_the_snapshots_do_not_come_near_is_refused(wanted):
    snapshots = [Snapshot(std, at) for std in (0.05, 0.1) for at in (4, 8, 12, 16, 20)]

    with pytest.raises(ValueError, match=f"cannot make an average of std {wanted.std} at step {wanted.num_updates}: "):
        reconstruction_weights(snapshots, wanted)


def test_one_snapshot_is_loaded_at_a_time_and_each_once():
    _, kept, _ = walk_with_snapshots([0.05, 0.10], 0.08, num_updates=30, every=10)
    loaded = []
    reconstruct(list(kept), lambda snapshot: loaded.append(snapshot) or kept[snapshot], Snapshot(0.08, 30))

    assert loaded == list(kept)


@pytest.mark.parametrize("std", [0.0, -0.1, 12**-0.5, 0.5, float("nan")])
def test_an_impossible_width_is_refused_with_its_value(std):
    with pytest.raises(ValueError, match=rf"ema std must lie in \(0, 0.289\), got {std}"):
        power(std)


def test_an_average_of_no_snapshots_is_refused():
    with pytest.raises(ValueError, match="an average needs at least one snapshot to be made of, got none"):
        reconstruction_weights([], Snapshot(0.1, 10))


@pytest.mark.parametrize("num_updates", [0, -1, 1001])
def test_an_average_after_the_last_snapshot_or_before_the_first_update_is_refused(num_updates):
    snapshots = [Snapshot(0.05, 500), Snapshot(0.05, 1000)]

    with pytest.raises(ValueError, match=rf"num_updates must be 1 to 1000 \(the last snapshot\), got {num_updates}"):
        reconstruction_weights(snapshots, Snapshot(0.1, num_updates))
