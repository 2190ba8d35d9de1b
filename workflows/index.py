"""`ddpm index`: Ray tasks read the tars that others wrote, a tar a task, and make a shard set of them in place."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from diffusion.data.adopt import (
    Adopted,
    Kind,
    TarFile,
    adopt_tar,
    adopted_set,
    commit_adopted,
    first_kind,
    list_tars,
    read_adopted,
)
from diffusion.files import Folder

from .cluster.connection import connected
from .cluster.tasks import map_tasks
from .progress import Bar, say
from .storage import JobFailed

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

    from .config import Workers
    from .storage import Environment


def run(environment: Environment, folder: Folder, workers: Workers) -> ShardSet:
    """The shard set that the tars in a folder are; what a killed run has done is kept.

    Takes no lock: two of these at once write the same bytes. Raises ValueError if there is nothing to adopt, or
    another set, JobFailed naming the first sample that cannot be adopted.
    """
    tars = list_tars(folder)
    if (shards := adopted_set(folder, tars)) is not None:
        say(f"index: reused {folder.uri} ({shards.digest})")
        return shards
    try:
        kind = first_kind(folder, tars)
    except ValueError as err:
        raise JobFailed(str(err)) from None
    with connected(replace(environment, storage=folder.uri), workers):  # the tars are what all nodes must reach
        reports = _adopt_all(folder, tars, kind, workers)
    return commit_adopted(folder, tars, kind, reports)


def _adopt_all(folder: Folder, tars: list[TarFile], kind: Kind, workers: Workers) -> list[Adopted]:
    """The reports of all tars, in their order. Raises JobFailed for the first that is refused."""
    reports = {tar: done for tar in tars if (done := read_adopted(folder, tar, kind)) is not None}
    if reports:
        say(f"index: going on after {len(reports)} of {len(tars)} tars")
    num_samples = sum(report.num_samples for report in reports.values())
    refused: list[Adopted] = []
    missing = (tar for tar in tars if tar not in reports)
    tasks = map_tasks(_adopt, takewhile(lambda _: not refused, missing), (folder.uri, kind), workers)
    with Bar("index", len(tars), "tar", done=len(reports)) as bar:
        for adopted in tasks:  # those before a refused one were begun before it, and are waited for
            if adopted.refusal:
                refused.append(adopted)
            reports[adopted.file] = adopted
            num_samples += adopted.num_samples
            bar.update(len(reports), f"{num_samples} img")
    if refused:
        raise JobFailed(min(refused, key=lambda adopted: adopted.file).refusal)
    return [reports[tar] for tar in tars]


def _adopt(tar: TarFile, common: tuple[str, Kind]) -> Adopted:
    """In a Ray task."""
    uri, kind = common
    return adopt_tar(Folder(uri), tar, kind)
