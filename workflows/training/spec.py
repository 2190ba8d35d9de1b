"""What the driver and the training workers tell each other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.process import DiffusionConfig
    from diffusion.unet import UNetConfig

    from ..config import TrainStage


@dataclass(frozen=True)
class Report:
    """What the first worker tells the driver."""

    step: int
    """optimiser steps done"""
    metrics: dict[str, float] | None = None
    """to be logged for this step"""
    saved: str = ""
    """where the checkpoint of this step now is, whole"""
    time: float = field(default_factory=time.time)
    """when, in seconds since 1970"""


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
    launch: str
    """names the driver's call, whatever number of attempts Ray makes in it"""
    start: str = ""
    """file in that folder with the weights to begin with; empty: random ones"""
    launched: float = field(default_factory=time.time)
    """when that was, in seconds since 1970"""
