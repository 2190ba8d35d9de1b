"""Words to the flags of a command: a preset or a file first, the flags on top."""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from diffusion.sampling import SamplerConfig

from ..config_file import read_config
from .arguments import Common, ConfigArgs, RunArgs, SampleArgs, ShardArgs, WrapsArgs
from .operator_arguments import RetrainArgs
from .presets import DEFAULT_PRESET, preset

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config, ShardStage

A = TypeVar("A")


def parse(name: str, args_type: type[Common], start: Callable[[Config], Common] | None, words: list[str]) -> Common:
    """A command's flags, on top of the preset or --config that it starts from."""
    if issubclass(args_type, WrapsArgs):
        words, command = _wrapped(name, words)
        return replace(_tyro(args_type, name, words, tyro.MISSING_NONPROP), command=command)
    if start is None:
        return _tyro(args_type, name, words, tyro.MISSING_NONPROP)
    chosen = (bool(words) and not words[0].startswith("-")) or _gives(words, "--config")
    base, words = _base_config(words)
    if name in ("run", "config", "retrain"):
        flags = {**RUN_FLAGS, **RETRAIN_FLAGS} if name == "retrain" else RUN_FLAGS
        words = [_staged(word, flags) for word in words]
    args: Common = _tyro(args_type, name, words, start(base))
    if isinstance(args, RunArgs | ConfigArgs | RetrainArgs) and not _gives(words, "--name"):
        args = replace(args, config=replace(args.config, name=_default_name(base, args.config.shard)))
    if isinstance(args, RetrainArgs):
        return replace(args, chosen=chosen, named=tuple(_setting(word) for word in words if word.startswith("--")))
    if isinstance(args, ShardArgs) and not _gives(words, "--name"):
        return replace(args, name=_default_name(base, args.shard))
    if isinstance(args, SampleArgs) and not chosen:
        names = [setting.name for setting in fields(SamplerConfig)]
        return replace(args, unsaid=tuple(name for name in names if not _gives(words, f"--{name}")))
    return args


def _wrapped(name: str, words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """A command's own words, and those of the command that it is about. Raises ValueError if there are none."""
    own = words[: words.index("--")] if "--" in words else words
    command = tuple(words[len(own) + 1 :])
    if not command and not {"-h", "--help"} & set(own):
        raise ValueError(f"{name} must be given a command after --, such as: ddpm {name} … -- run digits")
    return own, command


RUN_FLAGS = {"--source": "--shard.source", "--image-size": "--shard.image-size", "--num": "--sample.num"}
"""flags of one stage that `run` also takes without its name"""
RETRAIN_FLAGS = {"--min-new": "--retrain.min-new", "--fresh": "--retrain.fresh"}
"""and those that `retrain` does"""


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


def _staged(word: str, flags: dict[str, str]) -> str:
    flag, equals, value = word.partition("=")
    return f"{flags.get(flag, flag)}{equals}{value}"


def _setting(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0].replace("-", "_")


def _gives(words: list[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)
