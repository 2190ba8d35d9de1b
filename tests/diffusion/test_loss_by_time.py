import math

import pytest
import torch

from diffusion.loss_by_time import LossByTime, mean_losses
from diffusion.training import StepReport


def report(losses, t, skipped=False):
    losses = torch.tensor(losses)
    return StepReport(1, losses.sum(), losses, torch.tensor(t), 1.0, 1e-3, skipped)


def test_a_sample_counts_in_the_quartile_of_its_timestep():
    by_time = LossByTime(100, torch.device("cpu"))
    by_time.add(report([1.0, 3.0, 5.0, 7.0, 9.0], [0, 24, 25, 74, 99]))

    assert mean_losses(by_time.totals) == {
        "loss": 5.0, "loss_t1": 2.0, "loss_t2": 5.0, "loss_t3": 7.0, "loss_t4": 9.0,
    }  # fmt: skip


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 5, 1000])
def test_every_timestep_is_in_one_of_the_quartiles(num_timesteps):
    by_time = LossByTime(num_timesteps, torch.device("cpu"))
    by_time.add(report([1.0] * num_timesteps, list(range(num_timesteps))))

    assert by_time.totals[1].sum() == num_timesteps
    assert by_time.totals[1].max() <= -(-num_timesteps // 4)


def test_steps_and_workers_add_up_and_the_mean_is_that_over_all_their_samples():
    draws = torch.Generator().manual_seed(0)
    losses, t = torch.rand(60, generator=draws), torch.randint(0, 100, (60,), generator=draws)
    workers = [LossByTime(100, torch.device("cpu")) for _ in range(3)]
    for i in range(12):
        part = slice(5 * i, 5 * i + 5)
        workers[i % 3].add(StepReport(i, losses.sum(), losses[part], t[part], 1.0, 1e-3))
    found = mean_losses(sum(worker.totals for worker in workers))

    assert found["loss"] == pytest.approx(losses.mean().item())
    assert found["loss_t2"] == pytest.approx(losses[(t >= 25) & (t < 50)].mean().item())


def test_a_skipped_step_does_not_count():
    by_time = LossByTime(100, torch.device("cpu"))
    by_time.add(report([math.nan], [3], skipped=True))
    by_time.add(report([2.0], [60]))

    assert mean_losses(by_time.totals) == {"loss": 2.0, "loss_t3": 2.0}


def test_without_any_sample_the_loss_is_not_a_number():
    assert math.isnan(mean_losses(LossByTime(100, torch.device("cpu")).totals)["loss"])
