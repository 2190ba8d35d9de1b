"""Configs that are known to work, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion.process import DiffusionConfig

from ..config import Config, ModelConfig, RestoreStage, SampleStage, ShardStage, TrainStage

if TYPE_CHECKING:
    from collections.abc import Callable


def digits() -> Config:
    """scikit-learn's handwritten digits at 16x16, by class: two CPU cores learn them in about a minute."""
    return Config(
        name="digits",
        shard=ShardStage(image_size=16, samples_per_shard=256),
        model=ModelConfig(
            base_channels=16,
            channel_mults=(1, 2, 4),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            norm_groups=1,  # a CPU's bf16 GroupNorm takes 25 times as long below 16 channels a group
            chunk=50,
        ),
        diffusion=DiffusionConfig(schedule="cosine", prediction="v", loss="min_snr"),  # eps needs thrice the steps
        train=TrainStage(
            steps=600,
            global_batch=64,
            lr=2e-3,
            warmup_steps=50,
            decay="linear",
            ema_decays=(0.995,),
            flip=False,
            checkpoint_every=100,
            log_every=20,
        ),
        sample=SampleStage(num=500, sampler="dpmpp", steps=10, guidance=1.5),
        restore=RestoreStage(steps=25),
    )


def cifar10() -> Config:
    """The canonical DDPM of Ho et al. 2020 (35,746,307 parameters): FID 3.17 after 800,000 steps of 128 pictures.

    For CIFAR-10's 50,000 training pictures as files in the folder ./cifar10, without subfolders: it knows no classes.
    """
    return Config(
        name="cifar10",
        shard=ShardStage(source=("cifar10",), image_size=32, val_fraction=0.0),
        model=ModelConfig(),
        diffusion=DiffusionConfig(variance="fixed_large"),
        train=TrainStage(
            steps=800_000, global_batch=128, warmup_steps=5000, compile=True, checkpoint_every=5000, log_every=100
        ),
        sample=SampleStage(num=50_000, sampler="ddpm", steps=1000),
    )


def smoke() -> Config:
    """Everything once, in seconds: a network that learns next to nothing from 8x8 digits."""
    return Config(
        name="smoke",
        shard=ShardStage(image_size=8, samples_per_shard=512),
        model=ModelConfig(
            base_channels=16,
            channel_mults=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            norm_groups=8,
        ),
        train=TrainStage(
            steps=20,
            lr=1e-3,
            warmup_steps=5,
            ema_stds=(0.05, 0.1),
            flip=False,
            checkpoint_every=5,
            snapshot_every=4,
            log_every=5,
        ),
        sample=SampleStage(num=40, steps=5, guidance=1.5),
        restore=RestoreStage(num=10, steps=5, resamples=2),
    )


PRESETS: dict[str, Callable[[], Config]] = {"digits": digits, "cifar10": cifar10, "smoke": smoke}
DEFAULT_PRESET = "digits"


def preset(name: str) -> Config:
    """A preset by name. Raises ValueError, listing those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()
