"""Training steps side by side: `make bench-train`. Images per second, ratios first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from contest import arguments, chosen, circumstances, compete, device, ratios, table, write_section
from networks import LUCIDRAINS_LIKE_OURS, LUCIDRAINS_USUAL, diffusers_step, floor_step, lucidrains_step

from diffusion.data.loader import Batch
from diffusion.noisy import draw_noise
from diffusion.process import Diffusion, DiffusionConfig, to_unit_range
from diffusion.train_config import TrainConfig
from diffusion.training import Training, train_step
from diffusion.unet import UNet, UNetConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS, EAGER, FLOAT32 = "ours, bf16, compiled", "ours, bf16, eager", "ours, float32"
FLOOR = "floor: convolutions and linears alone, bf16"
DIFFUSERS, DIFFUSERS_BF16 = "diffusers, float32", "diffusers, bf16 autocast"
LUCIDRAINS, LUCIDRAINS_BF16 = "lucidrains 144, float32", "lucidrains 144, bf16 autocast"
SMALLER, SMALLER_BF16 = "lucidrains 64, float32", "lucidrains 64, bf16 autocast"
RATIOS = [
    (OURS, DIFFUSERS),
    (OURS, DIFFUSERS_BF16),
    (OURS, FLOOR),
    (OURS, LUCIDRAINS),
    (OURS, LUCIDRAINS_BF16),
    (OURS, SMALLER),
    (OURS, FLOAT32),
]


def our_step(images: torch.Tensor, precision: str, compiled: bool) -> Callable[[], object]:
    """A whole step of `fit`, drawing the noise included (in training that is done in another thread)."""
    batch = len(images)
    config = TrainConfig(global_batch=batch, num_lanes=1, precision=precision, warmup_steps=0)
    unet, diffusion = UNet(UNetConfig()).to(device()), Diffusion(DiffusionConfig())
    if device().type == "cuda":
        unet.to(memory_format=torch.channels_last)
    elif compiled:
        unet.compile_norms()
    wrap = torch.compile if compiled and device().type == "cuda" else lambda module: module
    training = Training(unet.train(), diffusion, config, wrap=wrap)
    noisy = draw_noise(_repeated(images), config, unet, diffusion)
    return lambda: train_step(training, next(noisy))


def _repeated(images: torch.Tensor) -> Iterator[Batch]:
    step = 0
    while True:
        yield Batch(step, [0], images, None)
        step += 1


def main() -> None:
    """Every contestant in turn; the table goes into RESULTS.md."""
    args = arguments(__doc__, batch=32)
    images = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8)
    x0 = to_unit_range(images).to(device())
    makers = {
        OURS: lambda: our_step(images, "bf16", compiled=True),
        EAGER: lambda: our_step(images, "bf16", compiled=False),
        FLOAT32: lambda: our_step(images, "fp32", compiled=False),
        FLOOR: lambda: floor_step(args.batch, device()),
        DIFFUSERS: lambda: diffusers_step(x0, bf16=False),
        DIFFUSERS_BF16: lambda: diffusers_step(x0, bf16=True),
        LUCIDRAINS: lambda: lucidrains_step(x0, False, LUCIDRAINS_LIKE_OURS),
        LUCIDRAINS_BF16: lambda: lucidrains_step(x0, True, LUCIDRAINS_LIKE_OURS),
        SMALLER: lambda: lucidrains_step(x0, False, LUCIDRAINS_USUAL),
        SMALLER_BF16: lambda: lucidrains_step(x0, True, LUCIDRAINS_USUAL),
    }
    text = report(compete(chosen(makers, args.only), args.rounds), args.batch, args.rounds)
    print(text) if args.only else write_section("Training step", text)


def report(seconds: dict[str, float], batch: int, rounds: int) -> str:
    """The ratios, then the rates."""
    rates = [("", "images/s", "s a step"), *((n, f"{batch / s:.2f}", f"{s:.3f}") for n, s in seconds.items())]
    head = (
        f"The CIFAR-10 network of Ho et al. (35,746,307 parameters), {batch} pictures a step, whole steps: noise, "
        f"forward, backward, clip, Adam, EMA. Medians of {rounds} rounds in which each has a turn. "
        f"lucidrains is another network: at 144 channels of 35,969,475 parameters and as many multiplications, at its "
        f"usual 64 of 35,711,491 parameters and a third of the multiplications.\n"
    )
    packages = ("torch", "diffusers", "denoising-diffusion-pytorch")
    return "\n".join([head + circumstances(packages) + "\n", table(ratios(seconds, RATIOS)), "", table(rates)])


if __name__ == "__main__":
    main()
