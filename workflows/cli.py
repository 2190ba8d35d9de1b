"""The `ddpm` command: flags to a config, a config to a job, its result to a table or JSON, its failure to one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from diffusion.process import DiffusionConfig  # noqa: TC001 - tyro reads the annotations

from .auth import guard_local_ray
from .config import (
    DEFAULT_PRESET,
    PRESETS,
    Config,
    ModelConfig,
    SampleStage,
    ShardStage,
    TrainStage,
    preset,
    read_config,
    to_plain,
    to_yaml,
)
from .storage import Environment, JobFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
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
    shard: Annotated[ShardStage, Flat]


@dataclass(frozen=True, kw_only=True)
class TrainArgs(Common):
    """Train a model on a shard set and register it."""

    name: str
    """of the model, and of the shard set if --data does not say"""
    data: str = ""
    """URI of the shard set; default STORAGE/data/NAME"""
    train: Annotated[TrainStage, Flat]
    model: ModelConfig
    diffusion: DiffusionConfig
    sample: SampleStage
    """how the model will be sampled, unless told otherwise; saved with it"""


@dataclass(frozen=True, kw_only=True)
class SampleArgs(Common):
    """Draw pictures from a registered model."""

    name: str
    """of the model, if --model does not say"""
    model: str = ""
    """models:/NAME@ALIAS or models:/NAME/VERSION; default the champion of NAME"""
    sample: Annotated[SampleStage, Flat]


@dataclass(frozen=True, kw_only=True)
class PullModelArgs(Common):
    """Copy a model's weights and config out of MLflow."""

    model: Positional[str]
    """NAME, NAME@alias or NAME/version"""
    destination: Positional[str]
    """a folder that does not exist yet"""


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
class UiArgs(Common):
    """Open MLflow's web interface on the runs in the storage."""

    port: int = 5000
    """on 127.0.0.1"""


@dataclass(frozen=True, kw_only=True)
class ConfigArgs(Common):
    """Print a preset, with the flags on top, as YAML for --config."""

    config: Annotated[Config, Flat]


def run_all(args: RunArgs) -> dict[str, Any]:
    """`ddpm run`."""
    from . import run
    from .summary import show_run

    result = run.run(args.config, args.where)
    show_run(result, args.where)
    return asdict(result)


def shard(args: ShardArgs) -> dict[str, Any]:
    """`ddpm shard`."""
    from diffusion.files import Folder

    from . import shard as stage
    from .summary import show_shards

    out = Folder(args.out) if args.out else args.where.data(args.name)
    shards = stage.run(Config(name=args.name, shard=args.shard), args.where, out)
    return show_shards(shards)


def train(args: TrainArgs) -> dict[str, Any]:
    """`ddpm train`."""
    from diffusion.data.shard_set import open_shard_set
    from diffusion.files import Folder

    from . import train as stage
    from .summary import show_model

    config = Config(name=args.name, train=args.train, model=args.model, diffusion=args.diffusion, sample=args.sample)
    shards = open_shard_set(Folder(args.data) if args.data else args.where.data(args.name))
    return show_model(stage.run(config, args.where, shards))


def sample(args: SampleArgs) -> dict[str, Any]:
    """`ddpm sample`."""
    from . import sample as stage
    from .summary import show_samples
    from .tracking import Tracker, model_version

    model = model_version(Tracker(args.where), args.model or args.name)
    return show_samples(stage.run(Config(name=model.name, sample=args.sample), args.where, model))


def pull_model(args: PullModelArgs) -> dict[str, Any]:
    """`ddpm pull model`."""
    from .pull import pull_model_to

    uri = pull_model_to(args.where, args.model, Path(args.destination))
    return _pulled({"model": uri, "destination": args.destination})


def pull_samples(args: PullSamplesArgs) -> dict[str, Any]:
    """`ddpm pull samples`."""
    from .pull import pull_samples_to

    run_id = pull_samples_to(args.where, args.run, Path(args.destination), args.as_)
    return _pulled({"run": run_id, "destination": args.destination})


def ui(args: UiArgs) -> dict[str, Any]:
    """`ddpm ui`: does not return until it is interrupted."""
    from .ui import serve

    serve(args.where, args.port)


def show_config(args: ConfigArgs) -> dict[str, Any]:
    """`ddpm config`."""
    print(to_yaml(args.config), end="", file=sys.stderr if args.json else sys.stdout)
    return to_plain(args.config)


@dataclass(frozen=True)
class Command:
    """A command: its flags (given the config that they start from), and what it does."""

    args: type[Common]
    start: Callable[[Config], Common] | None
    """from a preset or --config; None: the command takes neither"""
    act: Callable[[Any], dict[str, Any]]


COMMANDS = {
    "run": Command(RunArgs, lambda c: RunArgs(config=c), run_all),
    "shard": Command(ShardArgs, lambda c: ShardArgs(name=c.name, shard=c.shard), shard),
    "train": Command(
        TrainArgs,
        lambda c: TrainArgs(name=c.name, train=c.train, model=c.model, diffusion=c.diffusion, sample=c.sample),
        train,
    ),
    "sample": Command(SampleArgs, lambda c: SampleArgs(name=c.name, sample=c.sample), sample),
    "pull model": Command(PullModelArgs, None, pull_model),
    "pull samples": Command(PullSamplesArgs, None, pull_samples),
    "ui": Command(UiArgs, None, ui),
    "config": Command(ConfigArgs, lambda c: ConfigArgs(config=c), show_config),
}

HELP = """usage: ddpm COMMAND [PRESET | --config FILE.yaml] [FLAGS]

Denoising diffusion models from images to samples, on Ray, tracked in MLflow.

{commands}

Presets: {presets} (default {default}). `ddpm COMMAND --help` lists a command's flags.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, act, and exit: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(words)
    except KeyboardInterrupt:
        code = _error("interrupted; the same command goes on from here", INTERRUPTED)
    except (ValueError, FileNotFoundError) as err:
        code = _raise_or(err, words, WRONG_CALL)
    except (JobFailed, OSError, FloatingPointError) as err:
        code = _raise_or(err, words, FAILED)
    sys.exit(code)


def dispatch(words: list[str]) -> int:
    """Run the command that the words name; the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_help(), end="")
        return DONE if words else WRONG_CALL
    name = " ".join(words[:2]) if words[0] == "pull" else words[0]
    if name not in COMMANDS:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {name!r}")
    command = COMMANDS[name]
    args = parse(name, command, words[len(name.split()) :])
    guard_local_ray(args.where.address)
    result = command.act(args)
    if args.json:
        print(json.dumps(result))
    return DONE


def parse(name: str, command: Command, words: list[str]) -> Common:
    """A command's flags, on top of the preset or --config that it starts from."""
    if command.start is None:
        return _tyro(command.args, name, words, tyro.MISSING_NONPROP)
    base, words = _base_config(words)
    if name in ("run", "config"):
        words = [_staged(word) for word in words]
    args: Common = _tyro(command.args, name, words, command.start(base))
    if isinstance(args, RunArgs | ConfigArgs) and not _gives(words, "--name"):
        return replace(args, config=replace(args.config, name=_default_name(base, args.config.shard)))
    if isinstance(args, ShardArgs) and not _gives(words, "--name"):
        return replace(args, name=_default_name(base, args.shard))
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
    return base.name if stage.source == base.shard.source else Path(stage.source.rstrip("/")).resolve().name


def _staged(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{RUN_FLAGS.get(flag, flag)}{equals}{value}"


def _gives(words: list[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _pulled(result: dict[str, Any]) -> dict[str, Any]:
    print(f"ddpm: {' '.join(result.values())}", file=sys.stderr)
    return result


def _help() -> str:
    lines = [f"  {name:<14}{(command.args.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines), presets=", ".join(PRESETS), default=DEFAULT_PRESET)


def _raise_or(err: Exception, words: list[str], code: int) -> int:
    if "--debug" in words:
        raise err
    return _error(str(err), code)


def _error(message: str, code: int) -> int:
    print(f"ddpm: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
