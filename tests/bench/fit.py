"""What the training job costs beside its bare step: `make bench-fit`. Shares of the images a second, then the starts.

    python tests/bench/fit.py [--steps N] [--rounds N]

The bare step trains on noisy batches that lie in memory, in this process. The job is `ddpm train` with everything on:
Ray Train, loader, checkpoints, MLflow. Each has a turn in each round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from contest import arguments, circumstances, table, write_section
from mlflow import MlflowClient

from diffusion.data.loader import SampleReader, batches
from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard
from diffusion.files import Folder
from diffusion.noisy import draw_noise
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.train_config import TrainConfig
from diffusion.training import Training, train_step
from diffusion.unet import UNet, UNetConfig

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

DDPM = [sys.executable, "-m", "workflows.cli", "train", "smoke"]
NUM_PICTURES, SIZE, BATCH, LANES = 4000, 32, 32, 8
NETWORK = {"base_channels": 32, "channel_mults": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (16,)}
TRAIN = {"global_batch": BATCH, "num_lanes": LANES, "precision": "fp32"}
CHECKPOINT_EVERY, LOG_EVERY = 500, 10
WARM_UP = 20
"""steps, in which memory is laid out and caches fill"""
JOBS = {
    "job, 1 worker of 2 threads": (1, 2),
    "job, 2 workers of 1 thread": (2, 1),
    "job, 1 worker of 1 thread": (1, 1),
}
BARE = {"bare step, 2 threads": 2, "bare step, 1 thread": 1}
PAIRS = [
    ("job, 1 worker of 1 thread", "bare step, 1 thread"),
    # Where the training has every core, Ray's twenty processes that wait take 13% of one, and a step waits for its
    # slower thread. (With DDP, loader and prefetch but without Ray, a step takes the time of the bare one.)
    ("job, 1 worker of 2 threads", "bare step, 2 threads"),
    ("job, 2 workers of 1 thread", "job, 1 worker of 2 threads"),
]


def make_data(folder: Path) -> ShardSet:
    """A shard set of noise: what the pictures show does not matter here, and noise is the slowest to decode."""
    from PIL import Image

    (folder / "source").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, SIZE, SIZE, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / "source" / f"{index:05d}.png")
    out = Folder(folder / "set")
    plan = make_plan(ShardConfig(source=(str(folder / "source"),), image_size=SIZE), out)
    return commit_plan(plan, [make_shard(plan, shard, out) for shard in plan.shards], out)


def bare(shards: ShardSet, steps: int, threads: int) -> float:
    """Images a second of the step alone."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    unet = UNet(UNetConfig(image_size=SIZE, image_channels=3, num_classes=0, **NETWORK))
    config, diffusion = TrainConfig(**TRAIN), Diffusion(DiffusionConfig())
    drawn = list(draw_noise(batches(SampleReader(shards), config, 0, 20), config, unet, diffusion))
    training, seconds = Training(unet.train(), diffusion, config), []
    for step in range(steps):
        started = time.perf_counter()
        train_step(training, drawn[step % len(drawn)])
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds[WARM_UP:])


class Job:
    """One `ddpm train`, and what MLflow was told of it."""

    def __init__(self, shards: ShardSet, storage: Path, num_workers: int, threads: int, steps: int) -> None:
        flags = {
            "data": shards.folder.uri, "storage": storage, "steps": steps, "num_workers": num_workers,
            "cpus_per_worker": threads, "checkpoint_every": CHECKPOINT_EVERY, "log_every": LOG_EVERY, **TRAIN,
            **{f"model.{name}": value for name, value in NETWORK.items()},
        }  # fmt: skip
        self.command = [*DDPM]
        for name, value in flags.items():
            self.command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
        self.storage = storage
        self.started = time.time()

    def run(self) -> Job:
        """To its end."""
        subprocess.run(self.command, check=True, stderr=subprocess.DEVNULL)
        return self

    def kill(self) -> None:
        """After its first checkpoint."""
        process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        while not list(self.storage.glob("train/*/*/step-*/COMMIT")):
            time.sleep(0.1)
        process.kill()
        process.wait()

    def points(self, name: str) -> list[float]:
        """The values of a metric in the newest run, by step."""
        return [point.value for point in self._history(name)]

    def _history(self, name: str) -> list:
        client = MlflowClient(f"sqlite:///{self.storage}/mlflow.db")
        found = client.get_experiment_by_name("smoke").experiment_id
        newest = client.search_runs([found], "tags.`ddpm.stage` = 'train'", order_by=["start_time DESC"])[0]
        points = client.get_metric_history(newest.info.run_id, name)
        return [point for point in points if point.timestamp > 1000 * self.started]

    @property
    def rate(self) -> float:
        """Images a second, in the median of the intervals after the first ones."""
        return statistics.median(self.points("images_per_s")[WARM_UP // LOG_EVERY :])

    def start(self) -> tuple[str, ...]:
        """Seconds of each part of its start, from the command's first to that of the first step."""
        parts = [
            self.points(f"start/{name}_s")[0] for name in ("launch_to_worker", "worker_to_ready", "ready_to_first_step")
        ]
        first = self._history("start/ready_to_first_step_s")[0].timestamp / 1000 - self.started
        return tuple(f"{seconds:.1f}" for seconds in (first, first - sum(parts), *parts))


def main() -> None:
    """Rates in turns, what a checkpoint costs, then a start, a kill and a resume."""
    args = arguments(__doc__.splitlines()[0], steps=150, rounds=3)
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards = make_data(folder)
        rates: dict[str, list[float]] = {name: [] for name in (*BARE, *JOBS)}
        waits = []
        for number in range(args.rounds):
            for name, threads in BARE.items():
                rates[name].append(bare(shards, args.steps, threads))
            for job, (num_workers, threads) in JOBS.items():
                done = Job(shards, folder / f"{num_workers}-{threads}-{number}", num_workers, threads, args.steps).run()
                rates[job].append(done.rate)
                waits += done.points("data_wait")[WARM_UP // LOG_EVERY :]
        rate = {name: statistics.median(found) for name, found in rates.items()}
        saving = checkpoint_cost(shards, folder, args.steps)
        starts = [("seconds", "in all", "command to launch", "to the worker", "to ready", "to the first step")]
        starts += [("start", *done.start()), ("resume", *resumed(shards, folder, args.steps).start())]
    rows = [("ratio of images/s", ""), *((f"{a} / {b}", f"{rate[a] / rate[b]:.3f}") for a, b in PAIRS)]
    rows += [("data wait, share of the time", f"{statistics.median(waits):.4f}")]
    share = saving * rate["job, 1 worker of 2 threads"] / (CHECKPOINT_EVERY * BATCH)
    rows += [(f"a checkpoint every {CHECKPOINT_EVERY} steps, share of the time", f"{share:.5f} ({saving:.3f} s each)")]
    images_per_s = [("images/s", ""), *((name, f"{found:.1f}") for name, found in rate.items())]
    text = [
        f"{NUM_PICTURES} PNGs of {SIZE}x{SIZE}, batch {BATCH}, float32, a network of 32 channels; medians of "
        f"{args.rounds} rounds of {args.steps} steps.\n",
        circumstances(("torch", "ray", "mlflow")) + "\n",
        table(rows), "", table(images_per_s), "", table(starts),
    ]  # fmt: skip
    write_section("The training job", "\n".join(text))


def checkpoint_cost(shards: ShardSet, folder: Path, steps: int) -> float:
    """Seconds by which a checkpoint holds up the training: of a job that writes one every ten steps."""
    job = Job(shards, folder / "saving", 1, 2, steps)
    job.command += ["--checkpoint-every", str(LOG_EVERY)]
    job.run()
    rates, waits = job.points("images_per_s")[2:], job.points("checkpoint_wait")[2:]
    return statistics.median(wait * LOG_EVERY * BATCH / rate for wait, rate in zip(waits, rates, strict=True))


def resumed(shards: ShardSet, folder: Path, steps: int) -> Job:
    """A job that goes on after it was killed."""
    command = ["--checkpoint-every", str(LOG_EVERY)]
    killed = Job(shards, folder / "killed", 1, 2, 10 * steps)
    killed.command += command
    killed.kill()
    job = Job(shards, folder / "killed", 1, 2, 10 * steps)
    job.command += command
    process = subprocess.Popen(job.command, stderr=subprocess.DEVNULL)
    while True:
        time.sleep(1)
        try:
            if job.points("start/ready_to_first_step_s"):
                break
        except IndexError:
            continue
    process.terminate()
    process.wait()
    return job


if __name__ == "__main__":
    main()
