"""The settings that a data set and its champion were made with, for a command that is to do the same again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diffusion.data.shard_set import open_shard_set

from ..config_file import from_plain, to_plain
from ..tracking import Tracker, model_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..config import Config
    from ..storage import Environment


def saved_config(environment: Environment, name: str) -> Config:
    """What NAME was made with: the data as its shard set says, all else as its champion's training does.

    Raises FileNotFoundError if there is no shard set, ValueError if there is no champion, or it is not ours, or
    its settings are gone.
    """
    data = open_shard_set(environment.data(name)).config
    tracker = Tracker(environment)
    champion = model_version(tracker, name)
    folder = environment.training(tracker.run(champion.run_id).key)
    if not folder.exists("config.json"):
        raise ValueError(
            f"a preset or --config must be given: the settings that {champion.uri} was trained with are not in "
            f"{folder.uri} any more"
        )
    plain = folder.read_json("config.json")
    config = from_plain({**plain, "name": name, "shard": {**plain["shard"], **data}})
    return replace(config, train=replace(config.train, init_from=""))


def with_named(saved: Config, parsed: Config, flags: Iterable[str]) -> Config:
    """The saved config with what these flags (train.lr, sample.num, …) say in the parsed one."""
    plain, said = to_plain(saved), to_plain(parsed)
    for flag in flags:
        stage, _, setting = flag.partition(".")
        setting = setting if setting in said.get(stage, ()) else setting.removeprefix("no_")
        if setting:
            plain[stage][setting] = said[stage][setting]
    return from_plain(plain)
