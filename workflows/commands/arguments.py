"""The flags of each command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from diffusion.process import DiffusionConfig  # noqa: TC001 - tyro reads the annotations

from ..config import (
    Config,
    EvaluateStage,
    ModelConfig,
    RestoreStage,
    SampleStage,
    ShardStage,
    TrainStage,
    Workers,
)
from ..storage import Environment

Flat = arg(name="")


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every command."""

    where: Annotated[Environment, Flat] = field(default_factory=Environment)
    json: bool = False
    """end stdout with the result as one JSON object; everything else goes to stderr"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class WrapsArgs(Common):
    """Flags of a command about another command, whose words follow after `--`."""

    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """what follows after `--`"""


@dataclass(frozen=True, kw_only=True)
class RunArgs(Common):
    """All stages: shard, train, sample, promote. Stages that are done are reused."""

    config: Annotated[Config, Flat]


@dataclass(frozen=True, kw_only=True)
class ShardArgs(Common):
    """Turn images into a verified shard set."""

    name: str
    """of the data set; default the preset or the source folder"""
    out: str = ""
    """URI of the shard set; default STORAGE/data/NAME"""
    append: bool = False
    """add shards for what the set's manifest does not know; what is in it stays as it is"""
    shard: Annotated[ShardStage, Flat]


@dataclass(frozen=True, kw_only=True)
class IndexArgs(Common):
    """Make a shard set of WebDataset tars that others wrote, where they are."""

    uri: Positional[str]
    """path or URI of the folder that the tars are in; manifest and dataset.json are written beside them"""
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)


@dataclass(frozen=True, kw_only=True)
class VerifyArgs(Common):
    """Check that a shard set is what was committed, to the byte."""

    uri: Positional[str]
    """path or URI of the shard set; where there is none, the name of one in STORAGE/data"""
    deep: bool = False
    """decode every picture, too"""
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)


@dataclass(frozen=True, kw_only=True)
class TrainArgs(Common):
    """Train a model on a shard set and register it."""

    name: str
    """of the model, and of the shard set if --data does not say"""
    data: str = ""
    """URI of the shard set; default STORAGE/data/NAME"""
    fresh: bool = False
    """begin at the first step, whatever there is of this training; its checkpoints are removed"""
    train: Annotated[TrainStage, Flat]
    model: ModelConfig
    diffusion: DiffusionConfig
    sample: SampleStage
    """how the model will be sampled, unless told otherwise; saved with it"""


@dataclass(frozen=True, kw_only=True)
class AverageArgs(Common):
    """Make a model of another average of a training's weights, from its snapshots (see --snapshot-every)."""

    model: Positional[str]
    """of that training: NAME, NAME@alias or NAME/version"""
    std: float
    """the relative width of the average (Karras et al. 2024), such as 0.05; less is nearer to the last weights"""
    step: int = 0
    """at which the average ends; 0: at the last snapshot"""


@dataclass(frozen=True, kw_only=True)
class SampleArgs(Common):
    """Draw pictures from a registered model."""

    name: str
    """of the model, if --model does not say"""
    model: str = ""
    """models:/NAME@ALIAS or models:/NAME/VERSION; default the champion of NAME"""
    sample: Annotated[SampleStage, Flat]
    """without a preset or --config, the sampler's settings are those saved with the model where no flag is given"""
    unsaid: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """the sampler's settings that neither a preset, a file nor a flag named"""


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(Common):
    """Measure pictures beside the data: distances, precision and recall, copies, bits per dimension."""

    what: Positional[str]
    """the id of a sample run, NAME for the newest of that model, or the path or URI of a shard set"""
    data: str = ""
    """URI of the shard set to compare with; default what the model was trained on"""
    split: Literal["train", "val"] = "train"
    """of a shard set that is measured itself"""
    evaluate: Annotated[EvaluateStage, Flat] = field(default_factory=EvaluateStage)


@dataclass(frozen=True, kw_only=True)
class RestoreArgs(Common):
    """Mend damaged pictures with a registered model: paint in what is masked, or take noise out."""

    name: str
    """of the model, if --model does not say"""
    model: str = ""
    """models:/NAME@ALIAS or models:/NAME/VERSION; default the champion of NAME"""
    out: str = ""
    """folder or URI for the mended pictures; default STORAGE/restored/KEY"""
    restore: Annotated[RestoreStage, Flat]


@dataclass(frozen=True, kw_only=True)
class PullModelArgs(Common):
    """Copy a model's weights and config out of MLflow."""

    model: Positional[str]
    """NAME, NAME@alias or NAME/version"""
    destination: Positional[str]
    """a folder that does not exist yet"""
    format: Literal["safetensors", "diffusers"] = "safetensors"
    """safetensors: weights and a config.json; diffusers: a folder that diffusers' DDPMPipeline opens"""


@dataclass(frozen=True, kw_only=True)
class PullSamplesArgs(Common):
    """Copy the pictures of a sample run out of MLflow."""

    run: Positional[str]
    """the id of a sample run, or NAME for the newest of that model"""
    destination: Positional[str]
    """a folder that does not exist yet"""
    as_: Annotated[Literal["png", "webdataset", "npz"], arg(name="as")] = "png"
    """png: a folder of pictures; webdataset: the shard set; npz: samples.npz with arrays of pictures and labels"""


@dataclass(frozen=True, kw_only=True)
class ReportArgs(Common):
    """Make one HTML page of all that there is to see of a sample run."""

    run: Positional[str]
    """the id of a sample run, or NAME for the newest of that model"""
    out: str = ""
    """file or URI of the page; default STORAGE/reports/RUN.html"""


@dataclass(frozen=True, kw_only=True)
class LineageArgs(Common):
    """Say what a model, run, data set or picture came of, and what came of it."""

    id: Positional[str]
    """NAME, NAME@alias, NAME/version, the id of a run, the digest of a data set, or RUN/KEY of a sample"""


@dataclass(frozen=True, kw_only=True)
class GcArgs(Common):
    """List what no alias and no recent run can reach, with its bytes; --delete takes it away."""

    keep_days: float = 30.0
    """a run that ended in the last so many days is recent"""
    delete: bool = False
    """do it; without, it is only listed"""


@dataclass(frozen=True, kw_only=True)
class UiArgs(Common):
    """Open MLflow's web interface on the runs in the storage."""

    port: int = 5000
    """on 127.0.0.1"""


@dataclass(frozen=True, kw_only=True)
class ConfigArgs(Common):
    """Print a preset, with the flags on top, as YAML for --config."""

    config: Annotated[Config, Flat]
