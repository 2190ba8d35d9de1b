"""What a run is made of: one tree of frozen dataclasses, where every default lives.

The stages' settings extend those of the pure core by what only a job needs (workers, intervals): a job hands
its whole settings down, and the core reads the part that it knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from diffusion.data.plan import ShardConfig
from diffusion.data.reader import LoadConfig
from diffusion.process import DiffusionConfig
from diffusion.restore import RestoreConfig
from diffusion.sampling import SamplerConfig
from diffusion.settings import narrowed
from diffusion.train_config import TrainConfig
from diffusion.unet import NetworkConfig, UNetConfig


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How a stage is spread over the cluster. Changes nothing in the result."""

    num_workers: int = 2
    """Ray workers of the stage"""
    cpus_per_worker: float = 1.0
    """CPUs of each; may be a fraction"""
    gpus_per_worker: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if not 0 < self.cpus_per_worker < math.inf:
            raise ValueError(f"cpus_per_worker must be above 0 and finite, got {self.cpus_per_worker}")


@dataclass(frozen=True, kw_only=True)
class GpuWorkers(Workers):
    """The same with a GPU each."""

    gpus_per_worker: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class ShardStage(ShardConfig, Workers):
    """Images to a shard set."""

    def __post_init__(self) -> None:
        ShardConfig.__post_init__(self)
        Workers.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(NetworkConfig):
    """The network; picture size, channels and classes are those of the data."""

    chunk: int = 16
    """pictures in every network call of a sampler; part of what makes a picture reproducible"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainConfig, LoadConfig, Workers):
    """A shard set to a model."""

    init_from: str = ""
    """a registered model to begin with the weights of: NAME, NAME@alias or NAME/version; empty: random ones"""
    use_gpu: bool = False
    """one GPU a worker"""
    compile: bool = False
    """make faster code of the network first: pays for itself in long runs of large networks; needs a C++ compiler"""
    gradient_checkpointing: bool = False
    """recompute blocks in the backward pass instead of keeping what they made: less memory, a third more time"""
    micro_batch: int = 0
    """samples that the network of a worker is given at once, which bounds its memory; 0: its share of a step"""
    min_workers: int = 0
    """go on with so few while the cluster has no room for num_workers; 0: with all or none"""
    checkpoint_every: int = 500
    """steps between checkpoints"""
    snapshot_every: int = 0
    """steps between snapshots of the averages of ema_stds, of which `ddpm average` makes others; 0: none"""
    keep_checkpoints: int = 2
    """how many of the newest checkpoints to keep"""
    log_every: int = 50
    """steps between points in MLflow"""
    preview_every: int = 1000
    """steps between a grid and a denoising strip of a checkpoint in MLflow; 0: none"""
    max_failures: int = 3
    """worker crashes that are answered by going on from the last checkpoint"""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        LoadConfig.__post_init__(self)
        Workers.__post_init__(self)
        for name in ("checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.snapshot_every < 0 or (self.snapshot_every and not self.ema_stds):
            raise ValueError(
                f"snapshot_every must be at least 0, and ema_stds must be given for it, got {self.snapshot_every}"
            )
        for name in ("max_failures", "micro_batch", "preview_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers must be 0 to num_workers={self.num_workers}, got {self.min_workers}")
        if self.num_workers > self.num_lanes:
            raise ValueError(f"num_workers must be at most num_lanes={self.num_lanes}, got {self.num_workers}")


FEATURES = ("thumbnails", "dataset", "inception")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What samples are judged by. Changes nothing in them."""

    features: tuple[str, ...] = ("thumbnails",)
    """to compare in: thumbnails (8x8 pixels), dataset (a small net trained on the data), inception (as FID does);
    none: not judged"""
    inception_weights: str = ""
    """file or URL of Inception-v3's weights; empty: fetched where the network allows"""
    reference_images: int = 50_000
    """pictures of the training data, about so many at most, to compare with"""
    bits_images: int = 0
    """held-out pictures to find the bits per dimension of, which asks the network once a timestep; 0: none"""

    def __post_init__(self) -> None:
        for kind in self.features:
            if kind not in FEATURES:
                raise ValueError(f"features must be some of {', '.join(FEATURES)}, got {kind!r}")
        if self.reference_images < 1:
            raise ValueError(f"reference_images must be at least 1, got {self.reference_images}")
        if self.bits_images < 0:
            raise ValueError(f"bits_images must be at least 0, got {self.bits_images}")


@dataclass(frozen=True, kw_only=True)
class SampleStage(SamplerConfig, JudgeConfig, Workers):
    """A model to pictures."""

    num: int = 500
    """pictures to draw; the classes take turns"""
    seed: int = 0
    """from which every picture has its own"""
    labels: tuple[str, ...] = ()
    """classes to draw, by number or name; none: all"""

    def __post_init__(self) -> None:
        SamplerConfig.__post_init__(self)
        JudgeConfig.__post_init__(self)
        Workers.__post_init__(self)
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(JudgeConfig, Workers):
    """Samples to numbers."""

    features: tuple[str, ...] = ("thumbnails", "dataset")
    """to compare in: thumbnails (8x8 pixels), dataset (a small net trained on the data), inception (as FID does)"""
    reference: Literal["train", "val"] = "train"
    """split of the data to compare with; val is fair to models of which one was trained on less of it"""

    def __post_init__(self) -> None:
        JudgeConfig.__post_init__(self)
        Workers.__post_init__(self)
        if not self.features:
            raise ValueError(f"features must be some of {', '.join(FEATURES)}, got none")
        if self.reference not in ("train", "val"):
            raise ValueError(f"reference must be train or val, got {self.reference!r}")


@dataclass(frozen=True, kw_only=True)
class RestoreStage(RestoreConfig, Workers):
    """Damaged pictures to whole ones."""

    source: str = ""
    """a folder of pictures, or a shard set, whose held-out ones are taken; empty: those of the model's own data"""
    masks: str = ""
    """a folder with a mask for every picture of the source, of the same name: what is white is painted anew"""
    num: int = 0
    """at most so many pictures; 0: all"""
    seed: int = 0
    """from which, and from its pixels, every picture has its own"""

    def __post_init__(self) -> None:
        RestoreConfig.__post_init__(self)
        Workers.__post_init__(self)
        if self.num < 0:
            raise ValueError(f"num must be at least 0, got {self.num}")
        if self.masks and (self.damage not in ("auto", "none") or self.noise_std):
            raise ValueError(
                "masks must not be given with a damage or a noise_std: they say what is damaged themselves"
            )


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a candidate has to be to become champion. Changes nothing in it."""

    measure: Literal["thumbnails", "dataset", "inception"] = "thumbnails"
    """features in which its Fréchet distance must be lower than the champion's, by more than their intervals' noise"""
    min_distance_ratio: float = 0.5
    """guard against copies: least nearest_distance_ratio, where held-out pictures have 1 and copies 0; 0: no guard"""
    min_class_agreement: float = 0.1
    """guard against a lost class: least share of the worst class that is taken for it, unless the champion has less"""

    def __post_init__(self) -> None:
        if self.measure not in FEATURES:
            raise ValueError(f"measure must be one of {', '.join(FEATURES)}, got {self.measure!r}")
        if not 0 <= self.min_distance_ratio < math.inf:
            raise ValueError(f"min_distance_ratio must be at least 0 and finite, got {self.min_distance_ratio}")
        if not 0 <= self.min_class_agreement <= 1:
            raise ValueError(f"min_class_agreement must lie in [0, 1], got {self.min_class_agreement}")


@dataclass(frozen=True, kw_only=True)
class RetrainStage(GateConfig):
    """New pictures to a new champion, or to the reasons why not."""

    min_new: int = 1
    """do nothing while fewer pictures than these have come since the champion was trained"""
    fresh: bool = False
    """begin at random weights, not at the champion's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_new < 1:
            raise ValueError(f"min_new must be at least 1, got {self.min_new}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: data, model and samples; and what comes after it."""

    name: str
    """of the data set and of the model"""
    shard: ShardStage = field(default_factory=ShardStage)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainStage = field(default_factory=TrainStage)
    sample: SampleStage = field(default_factory=SampleStage)
    restore: RestoreStage = field(default_factory=RestoreStage)
    retrain: RetrainStage = field(default_factory=RetrainStage)

    def __post_init__(self) -> None:
        if not set(self.name) <= NAME_LETTERS or self.name.startswith(".") or not 1 <= len(self.name) <= 100:
            raise ValueError(
                f"name must be 1 to 100 letters, digits, '.', '_' or '-', the first not '.', got {self.name!r}"
            )
        if self.sample.steps > self.diffusion.num_timesteps:
            raise ValueError(
                f"sample.steps must be at most diffusion.num_timesteps={self.diffusion.num_timesteps}, "
                f"got {self.sample.steps}"
            )
        self.unet(
            image_size=self.shard.image_size, image_channels=3, num_classes=0
        )  # raises if they do not go together

    def unet(self, image_size: int, image_channels: int, num_classes: int) -> UNetConfig:
        """The network for data of this kind. Raises ValueError if the picture's size does not fit its levels."""
        return UNetConfig(
            **narrowed(NetworkConfig, self.model),
            image_size=image_size,
            image_channels=image_channels,
            num_classes=num_classes,
            learned_variance=self.diffusion.variance == "learned",
        )


NAME_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
