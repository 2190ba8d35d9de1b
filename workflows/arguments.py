"""The flags of each command, and how words become them: a preset or a file first, the flags on top."""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from diffusion.process import DiffusionConfig  # noqa: TC001 - tyro reads the annotations
from diffusion.sampling import SamplerConfig

from .config import (
    Config,
    ModelConfig,
    RestoreStage,
    SampleStage,
    ShardStage,
    TrainStage,
    Workers,
    read_config,
)
from .presets import DEFAULT_PRESET, preset
from .storage import Environment

if TYPE_CHECKING:
    from collections.abc import Callable

A = TypeVar("A")
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
    as_: Annotated[Literal["png", "webdataset"], arg(name="as")] = "png"
    """png: a folder of pictures; webdataset: the shard set"""


@dataclass(frozen=True, kw_only=True)
class LineageArgs(Common):
    """Say what a model, run, data set or picture came of, and what came of it."""

    id: Positional[str]
    """NAME, NAME@alias, NAME/version, the id of a run, the digest of a data set, or RUN/KEY of a sample"""


@dataclass(frozen=True, kw_only=True)
class UiArgs(Common):
    """Open MLflow's web interface on the runs in the storage."""

    port: int = 5000
    """on 127.0.0.1"""


@dataclass(frozen=True, kw_only=True)
class ConfigArgs(Common):
    """Print a preset, with the flags on top, as YAML for --config."""

    config: Annotated[Config, Flat]


def parse(name: str, args_type: type[Common], start: Callable[[Config], Common] | None, words: list[str]) -> Common:
    """A command's flags, on top of the preset or --config that it starts from."""
    if start is None:
        return _tyro(args_type, name, words, tyro.MISSING_NONPROP)
    chosen = (bool(words) and not words[0].startswith("-")) or _gives(words, "--config")
    base, words = _base_config(words)
    if name in ("run", "config"):
        words = [_staged(word) for word in words]
    args: Common = _tyro(args_type, name, words, start(base))
    if isinstance(args, RunArgs | ConfigArgs) and not _gives(words, "--name"):
        return replace(args, config=replace(args.config, name=_default_name(base, args.config.shard)))
    if isinstance(args, ShardArgs) and not _gives(words, "--name"):
        return replace(args, name=_default_name(base, args.shard))
    if isinstance(args, SampleArgs) and not chosen:
        names = [setting.name for setting in fields(SamplerConfig)]
        return replace(args, unsaid=tuple(name for name in names if not _gives(words, f"--{name}")))
    return args


RUN_FLAGS = {"--source": "--shard.source", "--image-size": "--shard.image-size", "--num": "--sample.num"}
"""flags of one stage that `run` also takes without its name"""


def _base_config(words: list[str]) -> tuple[Config, list[str]]:
    """The config that a command starts from, and the words that are left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    chosen = words[0] if words and not words[0].startswith("-") else None
    try:
        found, rest = parser.parse_known_args(words[1:] if chosen else words)
    except argparse.ArgumentError as err:
        raise ValueError(str(err)) from None
    if found.config and chosen:
        raise ValueError(f"give a preset or --config, not both: got {chosen} and {found.config}")
    return read_config(found.config) if found.config else preset(chosen or DEFAULT_PRESET), rest


def _tyro(args: type[A], name: str, words: list[str], default: Any) -> A:
    """tyro's parse, with what it has to say of a wrong flag in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: A = tyro.cli(args, prog=f"ddpm {name}", args=words, default=default)
            return parsed
    except SystemExit as err:
        if err.code in (0, None):
            raise
    raise ValueError(f"{_first_section(said.getvalue())} (see ddpm {name} --help)")


def _first_section(box: str) -> str:
    """The first words inside a box: what stands between its title and the next rule, drawn with "─" or "-"."""
    _title, *lines = (line.strip("│ ") for line in box.splitlines())
    sections = " ".join(" RULE " if set(line) <= set("─-╰╯") else line for line in lines).split(" RULE ")
    return next(section.strip() for section in sections if section.strip())


def _default_name(base: Config, stage: ShardStage) -> str:
    """That of the preset, or of the source folder where the flags name another source."""
    return base.name if stage.source == base.shard.source else Path(stage.source[0].rstrip("/")).resolve().name


def _staged(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{RUN_FLAGS.get(flag, flag)}{equals}{value}"


def _gives(words: list[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)
