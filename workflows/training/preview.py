"""How a model in training draws: a grid and a denoising strip of a checkpoint, made beside the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray

from diffusion.checkpoint import load_weights, read_tensors
from diffusion.data.images import encode_png
from diffusion.files import Folder
from diffusion.film import strip
from diffusion.grid import image_grid
from diffusion.process import Diffusion, to_uint8
from diffusion.sampling import SamplerConfig, sample_trajectory
from diffusion.unet import UNet

from ..cluster.on_worker import on_worker
from ..progress import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .spec import Report, TrainingSpec

NUM_IMAGES, STRIP_ROWS = 16, 4
STEPS = 20
GRID_PIXELS, STRIP_PIXELS = 256, 704
FIRST_EMA = "ema-0.safetensors"


def draw_preview(spec: TrainingSpec, checkpoint_uri: str) -> dict[str, bytes]:
    """`grid.png`: 16 pictures by ddim in 20 steps, each of the same seed and label at any time of the training;
    `strip.png`: four of them on their way from noise, a row each.

    Raises FileNotFoundError if the checkpoint has gone since.
    """  # fmt: skip
    unet, diffusion = UNet(spec.unet), Diffusion(spec.diffusion)
    load_weights(unet, read_tensors(Folder(checkpoint_uri).read(FIRST_EMA), FIRST_EMA))
    labels = [i % spec.unet.num_classes for i in range(NUM_IMAGES)] if spec.unet.num_classes else None
    config = SamplerConfig(sampler="ddim", steps=min(STEPS, diffusion.num_timesteps))
    states = [to_uint8(x) for x in sample_trajectory(unet.eval(), diffusion, range(NUM_IMAGES), labels, config)]
    return {
        "grid.png": encode_png(image_grid(states[-1], 4, GRID_PIXELS)),
        "strip.png": encode_png(strip([state[:STRIP_ROWS] for state in states], STRIP_PIXELS)),
    }


class Previews:
    """Draws every so often, in a Ray task that takes no worker's place, and hands on what is done."""

    def __init__(self, spec: TrainingSpec, done: int, show: Callable[[int, dict[str, bytes]], None]) -> None:
        self.spec, self.show = spec, show
        self.every = spec.stage.preview_every
        self._drawn = done // self.every if self.every else 0
        self._task = ray.remote(on_worker(draw_preview)).options(num_cpus=0, max_retries=0)
        self._running: dict[Any, int] = {}

    def look(self, report: Report) -> None:
        """Begin to draw, if this is the first checkpoint since another `preview_every` steps are done."""
        if self.every and report.saved and report.step // self.every > self._drawn:
            self._drawn = report.step // self.every
            self._running[self._task.remote(self.spec, report.saved)] = report.step

    def collect(self, timeout_s: float = 0.0) -> None:
        """Hand on those that are done within so many seconds; one that failed is told of, and missed."""
        done, _ = (
            ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout_s)
            if self._running
            else ([], [])
        )
        for task in done:
            step = self._running.pop(task)
            try:
                self.show(step, ray.get(task))
            except Exception as err:  # noqa: BLE001 - whatever befalls a preview, the training goes on
                say(f"train: no preview of step {step}: {str(err).strip().splitlines()[-1]}")
