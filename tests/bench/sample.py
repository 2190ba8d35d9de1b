"""Sampling side by side: `make bench-sample`. DDIM at equal step counts, images per second, ratios first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from contest import arguments, chosen, circumstances, compete, device, ratios, table, write_section
from networks import diffusers_unet, floor_step

from diffusion.process import Diffusion, DiffusionConfig
from diffusion.sampling import SamplerConfig, sample_images
from diffusion.unet import UNet, UNetConfig

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, OURS_BF16 = "ours, float32", "ours, bf16"
DIFFUSERS, DIFFUSERS_BF16 = "diffusers DDIMPipeline, float32", "diffusers DDIMPipeline, bf16 autocast"
FLOOR, FLOOR_BF16 = "floor: convolutions and linears alone, float32", "floor, bf16"
RATIOS = [
    (OURS_BF16, DIFFUSERS),
    (OURS, DIFFUSERS),
    (OURS_BF16, DIFFUSERS_BF16),
    (OURS, FLOOR),
    (OURS_BF16, FLOOR_BF16),
]


def ours(num: int, steps: int, precision: str) -> Callable[[], object]:
    """Pictures in chunks of 16, the contract's fixed shape, each with a seed of its own."""
    unet, diffusion = UNet(UNetConfig()).to(device()).eval(), Diffusion(DiffusionConfig())
    if device().type == "cuda":
        unet.to(memory_format=torch.channels_last)
    config = SamplerConfig(sampler="ddim", steps=steps, precision=precision)
    return lambda: list(sample_images(unet, diffusion, range(num), None, config, chunk=16))


def diffusers(num: int, steps: int, bf16: bool) -> Callable[[], object]:
    """The pipeline as users call it, to uint8 arrays, all pictures in one batch."""
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(diffusers_unet().to(device()).eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            return pipeline(batch_size=num, num_inference_steps=steps, output_type="np").images

    return run


def floor(num: int, steps: int, dtype: torch.dtype) -> Callable[[], None]:
    """Forward passes of the products alone."""
    pass_once = floor_step(num, device(), backward=False, dtype=dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                pass_once()

    return run


def main() -> None:
    """Every contestant in turn; the table goes into RESULTS.md."""
    args = arguments(__doc__, num=32, steps=5)
    makers = {
        OURS: lambda: ours(args.num, args.steps, "fp32"),
        OURS_BF16: lambda: ours(args.num, args.steps, "bf16"),
        DIFFUSERS: lambda: diffusers(args.num, args.steps, bf16=False),
        DIFFUSERS_BF16: lambda: diffusers(args.num, args.steps, bf16=True),
        FLOOR: lambda: floor(args.num, args.steps, torch.float32),
        FLOOR_BF16: lambda: floor(args.num, args.steps, torch.bfloat16),
    }
    seconds = compete(chosen(makers, args.only), args.rounds, warm_up=1)
    text = report(seconds, args.num, args.steps, args.rounds)
    print(text) if args.only else write_section("Sampling", text)


def report(seconds: dict[str, float], num: int, steps: int, rounds: int) -> str:
    """The ratios, then the rates."""
    rates = [("", "images/s", "ms a step"), *(
        (name, f"{num / s:.3f}", f"{s / steps * 1000:.0f}") for name, s in seconds.items()
    )]  # fmt: skip
    head = (
        f"The CIFAR-10 network of Ho et al. (35,746,307 parameters), {num} pictures by DDIM in {steps} steps. "
        f"Medians of {rounds} rounds in which each has a turn.\n"
    )
    return "\n".join(
        [head + circumstances(("torch", "diffusers")) + "\n", table(ratios(seconds, RATIOS)), "", table(rates)]
    )


if __name__ == "__main__":
    main()
