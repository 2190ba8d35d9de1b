"""What is only true, or only runs, on a GPU: `make test-gpu`. Skipped where there is none."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion.data.loader import Batch
from diffusion.noisy import draw_noise, pinned
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.train_config import TrainConfig
from diffusion.training import Training, fit
from diffusion.unet import UNet, UNetConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]

SHAPE = UNetConfig(image_size=16, base_channels=32, channel_mults=(1, 2), num_res_blocks=1, dropout=0.1)
DIFFUSION = Diffusion(DiffusionConfig())
STEPS = 12


def network(device, seed=0):
    """A small network with no weight at zero."""
    unet = UNet(SHAPE)
    draws = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=draws)
    return unet.to(device)


def config(precision):
    return TrainConfig(global_batch=32, num_lanes=8, precision=precision, warmup_steps=2, lr=1e-3, steps=STEPS)


def data(step):
    pixels = np.random.default_rng(step % 3).integers(0, 256, (32, 3, 16, 16), dtype=np.uint8)
    return Batch(step, list(range(8)), torch.from_numpy(pixels), None)


def training_of(device="cuda", precision="fp32", seed=0, **options):
    """In the memory layout that the job gives it."""
    unet = network(device, seed)
    unet.to(memory_format=torch.channels_last if device == "cuda" else torch.contiguous_format)
    return Training(unet, DIFFUSION, config(precision), **options)


def trained(training, start=0, stop=STEPS, pin=False):
    losses = []
    noisy = draw_noise(map(data, range(start, stop)), training.config, training.unet, DIFFUSION)
    fit(training, pinned(noisy) if pin else noisy, lambda report: losses.append(report.loss.item()))
    return losses


@pytest.fixture
def deterministic(monkeypatch):
    """Sums in a fixed order: what resuming bitwise needs of a GPU."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(unet, seeds):
    settings = SamplerConfig(sampler="ddim", steps=10)
    return torch.cat(list(sample_images(unet, DIFFUSION, seeds, None, settings, chunk=16)))


def test_a_picture_is_that_of_the_cpu_to_within_two_of_255_levels():
    here, there = (drawn(network(device).eval(), range(20)).int() for device in ("cpu", "cuda"))

    assert (here - there).abs().max() <= 2


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it():
    unet = network("cuda").eval()
    many = drawn(unet, range(40))

    for seed in (0, 7, 39):
        assert torch.equal(drawn(unet, [seed])[0], many[seed])


def test_the_loss_is_that_of_the_cpu():
    losses = [trained(training_of(device), stop=1) for device in ("cpu", "cuda")]

    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_bitwise_the_unbroken_one(precision, deterministic):
    unbroken = training_of(precision=precision)
    trained(unbroken, pin=True)
    first = training_of(precision=precision)
    trained(first, stop=5)
    resumed = training_of(precision=precision, seed=1)
    resumed.resume(first.checkpoint().copied())
    trained(resumed, start=5)

    for name, weight in unbroken.unet.state_dict().items():
        assert torch.equal(resumed.unet.state_dict()[name], weight), name


def test_compiled_it_trains_as_it_does_eagerly():
    torch.manual_seed(0)
    eager = trained(training_of(precision="bf16"))
    compiled = trained(training_of(precision="bf16", wrap=torch.compile))

    assert compiled == pytest.approx(eager, rel=0.05)
    assert compiled[-1] < compiled[0]


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [1, torch.cuda.device_count()] if torch.cuda.device_count() > 1 else [1])
def test_the_whole_job_runs_on_gpus(num_workers, tmp_path):
    flags = ["--use-gpu", "--precision=bf16", f"--num-workers={num_workers}"]
    train = [f"--train.{flag.removeprefix('--')}" for flag in flags]
    command = [sys.executable, "-m", "workflows.cli", "run", "smoke", *train, "--storage", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["n"] > 0
