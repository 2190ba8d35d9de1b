"""What the driver tells the training workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.process import DiffusionConfig
    from diffusion.unet import UNetConfig

    from .config import TrainStage


@dataclass(frozen=True)
class TrainingSpec:
    """All that a worker needs to know. The same for every worker and every attempt."""

    stage: TrainStage
    unet: UNetConfig
    diffusion: DiffusionConfig
    data_uri: str
    """of the shard set"""
    run_uri: str
    """of the folder of checkpoints"""
