"""What the sampling job costs beside the bare sampler, and how good its samplers are: `make bench-sample-job`.

    python tests/bench/sample_job.py [--num N] [--rounds N] [--ancestral-steps N]

The bare sampler draws in this process, with a model that is there. The job is `ddpm sample` with everything on: Ray,
PNGs, tars, hashes, MLflow. Each has a turn in each round, with a seed of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from contest import arguments, circumstances, table, write_section
from mlflow import MlflowClient

from diffusion.checkpoint import Model, load_model
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.seeding import image_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

DDPM = [sys.executable, "-m", "workflows.cli"]
SETTINGS = {"sampler": "dpmpp", "steps": 20, "guidance": 1.5}
JOBS = {"job, 2 actors of 1 thread": (2, 1), "job, 1 actor of 2 threads": (1, 2)}
BARE = "bare sampler, 2 threads"
FEATURES = ("thumbnails", "dataset")


def call(storage: Path, *words: str) -> dict[str, Any]:
    """A command on this storage; its result."""
    done = subprocess.run(
        [*DDPM, *words, "--storage", str(storage), "--json"], check=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(model: Model, num: int, seed: int, **settings: Any) -> torch.Tensor:
    """The pictures of the sampler alone, on two threads."""
    torch.set_num_threads(2)
    seeds, labels = image_seeds(seed, 0, num), [i % 10 for i in range(num)]
    config = SamplerConfig(**SETTINGS, **settings)
    return torch.cat(list(sample_images(model.unet, model.diffusion, seeds, labels, config, model.chunk)))


def bare(model: Model, num: int, seed: int) -> float:
    """Images a second of the sampler alone."""
    started = time.perf_counter()
    draw(model, num, seed)
    return num / (time.perf_counter() - started)


def differences(model: Model, num: int) -> tuple[float, float]:
    """How far pictures drawn in bfloat16 are from those in float32, in levels of 255: the largest, and the mean."""
    single, half = (draw(model, num, 0, precision=precision).float() for precision in ("fp32", "bf16"))
    return float((single - half).abs().max()), float((single - half).abs().mean())


def sample(
    storage: Path, num: int, seed: int, workers: tuple[int, int] = (2, 1), features: Sequence[str] = (), **settings: Any
) -> dict[str, Any]:
    """One `ddpm sample`; its result, with `seconds` that its run took in MLflow, which is all but Ray's start."""
    flags = {"num": num, "seed": seed, "num-workers": workers[0], "cpus-per-worker": workers[1], **SETTINGS, **settings}
    words = [f"--{name}={value}" for name, value in flags.items()]
    result = call(storage, "sample", "--name", "digits", *words, "--features", *features)
    uri = f"sqlite:///{storage}/mlflow.db"
    run = MlflowClient(uri, uri).get_run(result["run"])
    rate = run.data.metrics["images_per_s"]
    return {**result, "rate": rate, "seconds": (run.info.end_time - run.info.start_time) / 1000}


def main() -> None:
    """Rates in turns, what metrics cost, then the samplers' quality."""
    args = arguments(__doc__.splitlines()[0], num=1000, rounds=5, ancestral_steps=1000)
    with TemporaryDirectory() as name:
        storage = Path(name)
        call(storage, "run", "digits", "--num=20")
        (weights,) = storage.glob("mlflow-artifacts/**/artifacts/model/model.safetensors")
        model = load_model(lambda file: (weights.parent / file).read_bytes())
        sample(storage, 50, 0, features=FEATURES)  # the data's net and features are there from now on
        rates: dict[str, list[float]] = {name: [] for name in (BARE, *JOBS)}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(args.rounds):
            rates[BARE].append(bare(model, args.num, number))
            for place, (job, workers) in enumerate(JOBS.items()):
                done = sample(storage, args.num, 100 + 10 * number + place, workers)
                rates[job].append(done["rate"])
                seconds[False] += [done["seconds"]] if workers == (2, 1) else []
            seconds[True].append(sample(storage, args.num, 200 + number, features=FEATURES)["seconds"])
        quality = [
            (f"DPM++, {SETTINGS['steps']} steps", sample(storage, args.num, 1, features=FEATURES)["metrics"]),
            (
                f"ancestral, {args.ancestral_steps} steps",
                sample(storage, args.num, 1, features=FEATURES, sampler="ddpm", steps=args.ancestral_steps)["metrics"],
            ),
        ]
        largest, mean = differences(model, args.num)
    apart = f"{largest:.0f} levels of 255 at most, {mean:.2f} in the mean"
    report(args.num, args.rounds, rates, seconds, quality, apart)


def report(
    num: int, rounds: int, rates: dict[str, list[float]], seconds: dict[bool, list[float]],
    quality: list[tuple[str, dict[str, float]]], apart: str,
) -> None:  # fmt: skip
    """The section of RESULTS.md."""
    rate = {name: statistics.median(found) for name, found in rates.items()}
    two, one = JOBS
    cost = statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1
    pairs = [(two, BARE), (one, BARE), (two, one)]
    rows = [("ratio of images/s", ""), *((f"{a} / {b}", f"{rate[a] / rate[b]:.3f}") for a, b in pairs)]
    whole = num / statistics.median(seconds[False])
    rows += [(f"{two}, from the run's start in MLflow to its end / {BARE}", f"{whole / rate[BARE]:.3f}")]
    rows += [("metrics in thumbnails and the data's net, share of the run's time on top", f"{cost:.3f}")]
    images_per_s = [("images/s", ""), *((name, f"{found:.1f}") for name, found in rate.items())]
    distances = [("Fréchet distance", *(f"{kind} (95%)" for kind in FEATURES))]
    for sampler, metrics in quality:
        found = [tuple(metrics[f"frechet_{kind}{end}"] for end in ("", "_low", "_high")) for kind in FEATURES]
        distances.append((sampler, *(f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in found)))
    text = [
        f"{num} digits of 16x16, DPM++ in {SETTINGS['steps']} steps with guidance, chunks of 50; medians of {rounds} "
        f"rounds. A job's rate counts from the first task to the committed set.\n",
        circumstances(("torch", "ray", "mlflow")) + "\n",
        table(rows), "", table(images_per_s), "", table(distances), "",
        f"The same pictures in bfloat16 instead of float32 are off by {apart}.",
    ]  # fmt: skip
    write_section("The sampling job", "\n".join(text))


if __name__ == "__main__":
    main()
