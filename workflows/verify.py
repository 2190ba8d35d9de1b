"""`ddpm verify`: Ray tasks compute a shard set's hashes, counts and rows anew, a shard a task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from diffusion.data.shard_set import DATASET, open_shard_set
from diffusion.data.verify import Claim, Difference, check_dataset, check_listing, check_shard, claims, explain
from diffusion.files import Folder

from .cluster.connection import connected
from .cluster.tasks import make_missing
from .storage import JobFailed

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

    from .config import Workers
    from .storage import Environment


@dataclass(frozen=True)
class Checked:
    """What came of one task."""

    num_samples: int
    differences: list[Difference]


def find_set(environment: Environment, uri: str) -> Folder:
    """The folder at a path or URI; where there is none, the set of this name in the storage, if there is one."""
    folder = Folder(uri)
    if "/" in uri or folder.exists(DATASET) or not environment.data(uri).exists(DATASET):
        return folder
    return environment.data(uri)


def run(environment: Environment, folder: Folder, deep: bool, workers: Workers) -> ShardSet:
    """The set at a folder, every byte of it as committed; `deep` decodes every picture too.

    Raises JobFailed, naming the first difference in the order of tars, or FileNotFoundError if there is no set.
    """
    if damaged := check_dataset(folder):
        raise JobFailed(
            f"{folder.uri}/{damaged[0].file} {damaged[0].what}; {damaged[0].remedy} (no shard was looked at)"
        )
    shards = open_shard_set(folder)
    work = claims(shards)
    with connected(replace(environment, storage=folder.uri), workers):  # the set is what all nodes must reach
        checked = make_missing(
            "verify",
            work,
            lambda _: None,
            _check,
            (folder.uri, deep),
            workers,
            lambda result: result.num_samples,
            sum(claim.num_samples for claim in work),
        )
    differences = [*check_listing(shards), *chain.from_iterable(result.differences for result in checked)]
    if differences:
        raise JobFailed(explain(shards, differences))
    return shards


def _check(claim: Claim, common: tuple[str, bool]) -> Checked:
    """In a Ray task."""
    uri, deep = common
    return Checked(claim.num_samples, check_shard(Folder(uri), claim, deep))
