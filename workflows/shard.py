"""`ddpm shard`: Ray tasks turn images into a verified shard set."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from diffusion.data.append import check_appendable, known_of
from diffusion.data.duplicates import find_duplicates, hash_inputs, num_buckets, num_hashed
from diffusion.data.plan import Known, Plan, make_plan, read_plan, source_fingerprint
from diffusion.data.shard_set import DATASET, ShardSet, commit_plan, delete_from, open_shard_set
from diffusion.data.shards import ShardReport, make_shard, read_report
from diffusion.data.sources import check_source
from diffusion.files import Folder

from .cluster.connection import connected
from .cluster.tasks import make_missing, map_tasks
from .config_file import to_plain
from .progress import say
from .storage import JobFailed, check_storage, locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Config, ShardStage
    from .storage import Environment

UNTRACKED = "plan/untracked"
"""there from just before the set is committed until MLflow knows of it, to be told by the next run if that is killed"""
R = TypeVar("R")


def finished(stage: ShardStage, out: Folder) -> ShardSet | None:
    """The shard set at `out`, if it is there and made of this source, as it is now, with these settings.

    Raises ValueError if another one is there: it is never overwritten.
    """
    shards = committed(stage, out)
    if shards is not None and shards.source_fingerprint != source_fingerprint(stage.open_source().blocks()):
        raise ValueError(
            f"the source {' '.join(stage.source)} has changed since the shard set at {out.uri} was made; "
            f"give --append to add what is new, or another --name, or delete it"
        )
    return shards


def committed(stage: ShardStage, out: Folder) -> ShardSet | None:
    """The shard set at `out`, if it is there and made with these settings, of what its source had when it was made.

    Raises ValueError for other settings.
    """
    if not out.exists(DATASET):
        return None
    shards = open_shard_set(out)
    if shards.config_fingerprint != stage.fingerprint:
        changed = [name for name, value in stage.values.items() if shards.config.get(name) != value]
        raise ValueError(
            f"{out.uri} holds a shard set made with another {', '.join(changed)}; give another --name, or delete it"
        )
    return shards


def up_to_date(stage: ShardStage, out: Folder) -> ShardSet | None:
    """The shard set at `out`, if it has all that its source lists now; None if `run` with `append` is to look.

    Raises as `extended`.
    """
    shards = extended(stage, out)
    current = shards.source_fingerprint == source_fingerprint(stage.open_source().blocks())
    return shards if current and not out.exists(UNTRACKED) else None


def extended(stage: ShardStage, out: Folder) -> ShardSet:
    """The shard set at `out` with what `run` with `append` has added until now.

    Raises FileNotFoundError if there is no set, ValueError for settings that it was not made with.
    """
    shards = open_shard_set(out)
    check_appendable(stage, shards)
    return shards


def run(config: Config, environment: Environment, out: Folder, append: bool = False) -> ShardSet:
    """Make the shard set, or what is missing of it; with `append` add to one what it does not know.

    Raises ValueError for bad input, JobFailed for too many rejects.
    """
    stage = config.shard
    check_source(stage.source, stage.image_column, stage.label_column)  # raises before anything is made
    check_storage(environment)
    with locked(environment, f"shard-{config.name}"):
        old, made = (open_shard_set(out), None) if append else (None, finished(stage, out))
        if old is not None:
            check_appendable(stage, old)
        if made is not None:
            say(f"shards: reused {out.uri} ({made.digest})")
            if not out.exists(UNTRACKED):
                return made
        from .track_shards import track  # MLflow takes seconds to import: not for a set that is there and known

        with track(config, environment) as log:  # it refuses a server that does not answer
            shards = made or _make(config, environment, out, old)
            log(shards, made is None)
            out.delete(UNTRACKED)
    return shards


def _make(config: Config, environment: Environment, out: Folder, old: ShardSet | None) -> ShardSet:
    stage = config.shard
    with connected(environment, stage):
        plan = _plan(stage, out, Known() if old is None else known_of(old))
        if stage.dedupe:
            _compare(plan, stage, out)
        reports = make_missing(
            "shards", plan.shards, lambda shard: read_report(out, shard), _in_task, (make_shard, plan, out.uri), stage,
            _num_inputs, plan.num_items,
        )  # fmt: skip
    out.write_json("config.json", to_plain(config))
    out.write(UNTRACKED, b"")
    try:
        return commit_plan(plan, reports, out, old)
    except ValueError as err:
        raise JobFailed(str(err)) from None


def _plan(stage: ShardStage, out: Folder, known: Known) -> Plan:
    """The plan of a killed run, if it was for the same settings and inputs; else a new one, on a clean ground."""
    plan = read_plan(out)
    if plan is not None and (plan.config.fingerprint, plan.first_shard) == (stage.fingerprint, known.num_shards):
        if plan.source_fingerprint == source_fingerprint(stage.open_source().blocks()):
            return plan
        say("shards: the source has changed since the last attempt; beginning anew")
    delete_from(out, known.num_shards)
    return make_plan(stage, out, known)


def _compare(plan: Plan, stage: ShardStage, out: Folder) -> None:
    """Find the inputs that are the same as another: each is read once more for that."""
    make_missing(
        "hashes", plan.shards, lambda shard: num_hashed(out, shard), _in_task, (hash_inputs, plan, out.uri), stage, int,
        plan.num_items,
    )  # fmt: skip
    found = sum(map_tasks(_in_task, range(num_buckets(plan)), (find_duplicates, plan, out.uri), stage))
    say(f"shards: {found} of {plan.num_items} inputs are the same as an earlier one")


def _in_task(number: int, common: tuple[Callable[[Plan, int, Folder], R], Plan, str]) -> R:
    function, plan, uri = common
    return function(plan, number, Folder(uri))


def _num_inputs(report: ShardReport) -> int:
    return report.num_samples + sum(report.rejects.values())
