"""What the sampling job costs beside the bare sampler, and how good its samplers are: `make bench-sample-job`.

    python tests/bench/sample_job.py [--num N] [--rounds N] [--ancestral_steps N]

The bare sampler draws in a process of its own, which has the model: as PyTorch is, and with the memory kept that it
frees, as our workers do. The job is `ddpm sample` with everything on: Ray, PNGs, tars, hashes, MLflow. Each has a turn
in each round, with a seed of its own. No rounds, or no ancestral steps: without that part.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from contest import arguments, circumstances, table, write_section
from mlflow import MlflowClient

from diffusion.checkpoint import Model, load_model
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.seeding import image_seeds
from workflows.cluster.machine import keep_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DDPM = [sys.executable, "-m", "workflows.cli"]
SETTINGS = {"sampler": "dpmpp", "steps": 20, "guidance": 1.5}
JOBS = {"job, 2 actors of 1 thread": (2, 1), "job, 1 actor of 2 threads": (1, 2)}
BARE, KEPT = "bare sampler, 2 threads", "bare sampler, 2 threads, memory kept"
BARES: dict[str, Callable[[], None] | None] = {BARE: None, KEPT: keep_memory}
FEATURES = ("thumbnails", "dataset")


def call(storage: Path, *words: str) -> dict[str, Any]:
    """A command on this storage; its result."""
    done = subprocess.run(
        [*DDPM, *words, "--storage", str(storage), "--json"], check=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def model_of(storage: Path) -> Model:
    """The one model of this storage."""
    (weights,) = storage.glob("mlflow-artifacts/**/artifacts/model/model.safetensors")
    return load_model(lambda file: (weights.parent / file).read_bytes())


def draw(model: Model, num: int, seed: int, **settings: Any) -> torch.Tensor:
    """The pictures of the sampler alone, on two threads."""
    torch.set_num_threads(2)
    seeds, labels = image_seeds(seed, 0, num), [i % 10 for i in range(num)]
    config = SamplerConfig(**SETTINGS, **settings)
    return torch.cat(list(sample_images(model.unet, model.diffusion, seeds, labels, config, model.chunk)))


def bare(storage: Path, num: int, seed: int) -> float:
    """Images a second of the sampler alone, once it is warm."""
    model = model_of(storage)
    draw(model, 2 * model.chunk, seed)
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
    """Rates in turns and what metrics cost, then the samplers' quality."""
    args = arguments(__doc__.splitlines()[0], num=1000, rounds=5, ancestral_steps=1000)
    with TemporaryDirectory() as name:
        storage = Path(name)
        call(storage, "run", "digits", "--num=20")
        sample(storage, 50, 0, features=FEATURES)  # the data's net and features are there from now on
        if args.rounds:
            report_rates(args.num, args.rounds, *compete(storage, args.num, args.rounds))
        if args.ancestral_steps:
            report_quality(storage, args.num, args.ancestral_steps)


def compete(storage: Path, num: int, rounds: int) -> tuple[dict[str, list[float]], dict[bool, list[float]]]:
    """Images/s of each contestant in each round; seconds of the runs of two actors without metrics, and with."""
    rates: dict[str, list[float]] = {name: [] for name in (*BARES, *JOBS)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for name, prepare in BARES.items():
            with ProcessPoolExecutor(1, get_context("spawn"), prepare) as process:
                rates[name].append(process.submit(bare, storage, num, number).result())
        for place, (job, workers) in enumerate(JOBS.items()):
            done = sample(storage, num, 100 + 10 * number + place, workers)
            rates[job].append(done["rate"])
            seconds[False] += [done["seconds"]] if workers == (2, 1) else []
        seconds[True].append(sample(storage, num, 200 + number, features=FEATURES)["seconds"])
        print(number, {name: round(found[-1], 1) for name, found in rates.items()}, flush=True)
    return rates, seconds


def report_rates(num: int, rounds: int, rates: dict[str, list[float]], seconds: dict[bool, list[float]]) -> None:
    """Their section of RESULTS.md."""
    rate = {name: statistics.median(found) for name, found in rates.items()}
    two, one = JOBS
    cost = statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1
    pairs = [(two, BARE), (one, BARE), (two, KEPT), (one, KEPT), (two, one)]
    rows = [("ratio of images/s", ""), *((f"{a} / {b}", f"{rate[a] / rate[b]:.3f}") for a, b in pairs)]
    whole = num / statistics.median(seconds[False])
    rows += [(f"{two}, from the run's start in MLflow to its end / {BARE}", f"{whole / rate[BARE]:.3f}")]
    rows += [("metrics in thumbnails and the data's net, share of the run's time on top", f"{cost:.3f}")]
    images_per_s = [("images/s", "median", "least", "most")]
    images_per_s += [(name, f"{rate[name]:.1f}", f"{min(of):.1f}", f"{max(of):.1f}") for name, of in rates.items()]
    text = [
        f"{num} digits of 16x16, DPM++ in {SETTINGS['steps']} steps with guidance, chunks of 50; medians of {rounds} "
        f"rounds. A job's rate counts from the first task to the committed set.\n",
        circumstances(("torch", "ray", "mlflow")) + "\n",
        table(rows), "", table(images_per_s),
    ]  # fmt: skip
    write_section("The sampling job", "\n".join(text))


def report_quality(storage: Path, num: int, ancestral_steps: int) -> None:
    """Fréchet distances of the fast sampler and of the slow one, and what bfloat16 does; a section of RESULTS.md."""
    ancestral = {"sampler": "ddpm", "steps": ancestral_steps}
    makers: dict[str, dict[str, Any]] = {
        f"DPM++, {SETTINGS['steps']} steps": {}, f"ancestral, {ancestral_steps} steps": ancestral,
    }  # fmt: skip
    distances = [("Fréchet distance", *(f"{kind} (95%)" for kind in FEATURES))]
    for sampler, settings in makers.items():
        metrics = sample(storage, num, 1, features=FEATURES, **settings)["metrics"]
        found = [tuple(metrics[f"frechet_{kind}{end}"] for end in ("", "_low", "_high")) for kind in FEATURES]
        distances.append((sampler, *(f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in found)))
    compared = min(num, 100)  # bfloat16 is slow where the processor does not have it
    largest, mean = differences(model_of(storage), compared)
    text = [
        f"{num} digits of 16x16 with guidance {SETTINGS['guidance']}, the same seeds.\n",
        circumstances(("torch",)) + "\n",
        table(distances), "",
        f"The first {compared} by DPM++ in bfloat16 instead of float32 are off by {largest:.0f} levels of 255 at most, "
        f"{mean:.2f} in the mean.",
    ]  # fmt: skip
    write_section("The sampling job's samplers", "\n".join(text))


if __name__ == "__main__":
    main()
