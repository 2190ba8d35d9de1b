"""`ddpm shard`: Ray tasks turn images into a verified shard set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion.data.plan import Plan, make_plan, read_plan, source_fingerprint
from diffusion.data.shard_set import DATASET, ShardSet, commit_plan, open_shard_set
from diffusion.data.shards import ShardReport, make_shard, read_report
from diffusion.data.sources import check_source
from diffusion.files import Folder

from .cluster import connected, make_missing
from .config import to_plain
from .progress import say
from .storage import JobFailed, check_storage, locked

if TYPE_CHECKING:
    from .config import Config, ShardStage
    from .storage import Environment

UNFINISHED = ("plan", "manifest.parquet", "rejects.parquet")


def finished(stage: ShardStage, out: Folder) -> ShardSet | None:
    """The shard set at `out`, if it is there and made of this source with these settings.

    Raises ValueError if another one is there: it is never overwritten.
    """
    if not out.exists(DATASET):
        return None
    shards = open_shard_set(out)
    if shards.config_fingerprint != stage.fingerprint:
        changed = [name for name, value in stage.values.items() if shards.config.get(name) != value]
        raise ValueError(
            f"{out.uri} holds a shard set made with another {', '.join(changed)}; give another --name, or delete it"
        )
    if shards.source_fingerprint != source_fingerprint(stage.open_source().blocks()):
        raise ValueError(
            f"the source {' '.join(stage.source)} has changed since the shard set at {out.uri} was made; "
            f"give another --name, or delete it"
        )
    return shards


def run(config: Config, environment: Environment, out: Folder) -> ShardSet:
    """Make the shard set, or what is missing of it. Raises ValueError for bad input, JobFailed for too many rejects."""
    stage = config.shard
    check_source(stage.source)  # raises before anything is made
    check_storage(environment)
    with locked(environment, f"shard-{config.name}"):
        if (shards := finished(stage, out)) is not None:
            say(f"shards: reused {out.uri} ({shards.digest})")
            return shards
        with connected(environment, stage):  # before anything is written: it refuses what cannot work
            plan = _plan(stage, out)
            reports = _make_missing(plan, stage, out)
        try:
            shards = commit_plan(plan, reports, out)
        except ValueError as err:
            raise JobFailed(str(err)) from None
        out.write_json("config.json", to_plain(config))
    return shards


def _plan(stage: ShardStage, out: Folder) -> Plan:
    """The plan of a killed run, if it was for the same settings and inputs; else a new one, on a clean ground."""
    plan = read_plan(out)
    if plan is not None and plan.config.fingerprint == stage.fingerprint:
        if plan.source_fingerprint == source_fingerprint(stage.open_source().blocks()):
            return plan
        say("shards: the source has changed since the last attempt; beginning anew")
    for name in UNFINISHED:
        out.delete(name)
    for name in [name for name in out.names() if name.endswith(".tar")]:
        out.delete(name)
    return make_plan(stage, out)


def _make_missing(plan: Plan, stage: ShardStage, out: Folder) -> list[ShardReport]:
    shards = range(plan.num_shards)
    common = (plan, out.uri)
    return make_missing(
        "shards", shards, lambda shard: read_report(out, shard), _make, common, stage, _num_inputs, plan.num_items
    )


def _make(shard: int, common: tuple[Plan, str]) -> ShardReport:
    plan, uri = common
    return make_shard(plan, shard, Folder(uri))


def _num_inputs(report: ShardReport) -> int:
    return report.num_samples + sum(report.rejects.values())
