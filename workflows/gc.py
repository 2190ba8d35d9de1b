"""`ddpm gc`: what no alias and no recent run can reach, and taking it away."""

from __future__ import annotations

import hashlib
import math
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from diffusion.files import Folder

from .champions.promotion import fallback
from .reachable import Thing, unreachable
from .storage import JobFailed, held_locks, locked
from .tracking import (
    DIGEST_TAG,
    FEATURES_OF_TAG,
    MODEL_TAG,
    STAGE_TAG,
    URI_TAG,
    StoredRun,
    StoredVersion,
    Tracker,
    delete_run,
    delete_version,
    stored_runs,
    stored_versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .storage import Environment

DAY_S = 86_400
HEX = re.compile("[0-9a-f]{16,}")
"""a key, a digest or the id of a run, in the name of a report"""
DATASET, COMMIT_POINTS = "dataset.json", ("grid.png", "restored.json", "dataset.json", "COMMIT")
"""the files that say that what they are in is whole"""
FOLDERS = {"train": "train", "sample": "samples", "restore": "restored"}
"""in which a stage leaves a folder by its key"""
RUN, VERSION = "run", "model version"
LINK = "is a link: what it leads to is not in the storage"
UNKNOWN = "no run in MLflow made it"


@dataclass(frozen=True)
class Finding:
    """A thing, and why it is in this list."""

    thing: Thing
    why: str
    age_days: float


@dataclass(frozen=True)
class Collected:
    """What `ddpm gc` found, and did."""

    garbage: list[Finding]
    """nothing reaches it; deleted, if that was asked for"""
    untracked: list[Finding]
    """what MLflow knows nothing of, and is left"""
    kept: list[Finding]
    """garbage that was not deleted after all: somebody works on it, or something reaches it by now"""
    deleted: bool

    @property
    def num_bytes(self) -> int:
        """Of the garbage."""
        return sum(found.thing.num_bytes for found in self.garbage)


def run(environment: Environment, keep_days: float, delete: bool, say: Callable[[str], None]) -> Collected:
    """Find the garbage, and with `delete` take it away, telling `say` of each thing.

    A run is recent if it ended, or else began, in the last `keep_days`. Raises ValueError if they are negative, or if
    nothing has been tracked.
    """
    if not keep_days >= 0 or math.isinf(keep_days):
        raise ValueError(f"keep_days must be at least 0, got {keep_days:g}")
    tracker = Tracker(environment)
    if tracker.is_empty:
        raise ValueError(f"nothing has been tracked in {tracker.uri} yet: what is in {environment.storage} is unknown")
    oldest = time.time() - keep_days * DAY_S
    stored = list(in_storage(environment.folder))
    garbage, untracked = decide(stored, tracker, oldest)
    garbage = [replace(found, thing=weighed(found.thing)) for found in garbage]
    if not delete:
        return Collected(garbage, untracked, [], deleted=False)
    done, kept = [], []
    for found in garbage:
        if why := _collect(found.thing, stored, tracker, oldest):
            kept.append(Finding(found.thing, why, found.age_days))
        else:
            say(f"gc: deleted {found.thing.id}")
            done.append(found)
    return Collected(done, untracked, kept, deleted=True)


def decide(stored: list[Thing], tracker: Tracker, oldest: float, ours: str = "") -> tuple[list[Finding], list[Finding]]:
    """Of what is stored and what MLflow has now: the garbage, and what no run made. `ours`: a lock that we hold."""
    environment = tracker.environment
    runs, versions = stored_runs(tracker), stored_versions(tracker)
    inside = environment.folder.uri
    # In the order in which they go: a run that says FINISHED must have its model, and a model that can be given an
    # alias its data.
    tracked = [
        *(_run_thing(run, inside) for run in runs if not run.is_deleted),
        *(_version_thing(version, inside) for version in versions),
    ]
    roots = {version.model.uri for version in versions if version.model.aliases}
    roots |= {fallback(tracker, name) for name in {version.model.name for version in versions}}
    roots |= {_id(run) for run in runs if run.changed >= oldest or run.tracked.status == "RUNNING"}
    roots |= {f"lock:{name}" for name in held_locks(environment) if name != ours}
    made: dict[str, StoredRun] = {name: run for run in runs for name in _made_by(run)}  # the newest
    garbage, untracked, now = [], [], time.time()
    for thing in unreachable([*tracked, *stored], roots):
        age = (now - thing.changed) / DAY_S
        maker = next((made[name] for name in sorted({thing.id, *thing.names} & made.keys())), None)
        if thing.kind in (RUN, VERSION):
            garbage.append(Finding(thing, "no alias, and nothing that is kept, leads to it", age))
        elif maker is None or thing.kind == LINK:
            untracked.append(Finding(thing, LINK if thing.kind == LINK else UNKNOWN, age))
        else:
            days = (now - maker.changed) / DAY_S
            garbage.append(Finding(thing, f"the last run of it is {maker.tracked.run_id}, {days:.0f} days ago", age))
    return garbage, untracked


def _collect(thing: Thing, stored: list[Thing], tracker: Tracker, oldest: float) -> str:
    """Delete a thing, if nothing reaches it still; else why not."""
    with ExitStack() as stack:
        try:
            if thing.lock:
                stack.enter_context(locked(tracker.environment, thing.lock, wait_s=0))
        except JobFailed:
            return "somebody works on it"
        garbage, _ = decide(stored, tracker, oldest, ours=thing.lock)
        if thing.id not in {found.thing.id for found in garbage}:
            return "something reaches it by now"
        if thing.kind == RUN:
            delete_run(tracker, thing.id.removeprefix("runs:/"))
        elif thing.kind == VERSION:
            (model,) = (name for name in thing.names if name.startswith("model:"))
            delete_version(tracker, thing.id, model.removeprefix("model:") if thing.artifacts else "")
        else:
            remove(tracker.environment.folder, thing.id)
        if thing.artifacts:
            place = Folder(thing.artifacts)
            remove(place.parent, place.name)
    return ""


def remove(folder: Folder, name: str) -> None:
    """First what says that it is whole, so that what a killed command leaves is taken for nothing else."""
    for info in _files(folder, name):
        if info.base_name in COMMIT_POINTS:
            folder.delete(info.path.removeprefix(folder.path.rstrip("/") + "/"))
    folder.delete(name)


def in_storage(storage: Folder) -> Iterator[Thing]:
    """All that jobs leave in a storage, but for what MLflow knows the place of. One listing a thing."""
    for entry in _entries(storage, "data"):
        yield _data(storage, f"data/{entry}", f"shard-{entry}")
    for entry in _entries(storage, "train"):
        if entry != "ray":
            yield _thing(storage, f"train/{entry}", "checkpoints", lock=f"train-{entry}")
    for entry in _entries(storage, "train/ray"):
        yield _thing(storage, f"train/ray/{entry}", "checkpoints", {f"train/{entry}"}, lock=f"train-{entry}")
    for entry in _entries(storage, "samples"):
        yield _data(storage, f"samples/{entry}", f"sample-{entry}")
    for entry in _entries(storage, "restored"):
        place = hashlib.sha256((storage / f"restored/{entry}").uri.encode()).hexdigest()[:16]
        yield _thing(storage, f"restored/{entry}", "restored", lock=f"restore-{place}")
    for network in _entries(storage, "features"):
        for entry in _entries(storage, f"features/{network}"):
            yield _thing(storage, f"features/{network}/{entry}", "features", {f"features:{entry}"})
    for entry in _entries(storage, "configs"):
        yield _thing(storage, f"configs/{entry}", "config", {f"configs/{entry.rpartition('-')[0]}"})  # but its hash
    for entry in _entries(storage, "reports"):
        yield _thing(storage, f"reports/{entry}", "report", {f"of:{word}" for word in HEX.findall(entry)})


def _entries(storage: Folder, name: str) -> list[str]:
    return [entry for entry in storage.names(name) if not entry.startswith(".")]


def _data(storage: Folder, name: str, lock: str) -> Thing:
    """A shard set, or what is to become one."""
    folder = storage / name
    kind = name.partition("/")[0]
    if not folder.exists(DATASET):
        return _thing(storage, name, kind, {_uri(folder.uri)}, lock=lock)
    digest = folder.read_json(DATASET)["digest"]
    return _thing(storage, name, kind, {_uri(folder.uri), f"digest:{digest}"}, _data_links(digest), lock)


def _thing(
    storage: Folder, name: str, kind: str, names: set[str] | None = None, leads_to: set[str] | None = None,
    lock: str = "",
) -> Thing:  # fmt: skip
    if storage.is_local and Path(storage.at(name)).is_symlink():
        kind, files = LINK, []
    else:
        files = _files(storage, name)
    return Thing(
        name, kind, frozenset({*(names or ()), *([f"lock:{lock}"] if lock else [])}), frozenset(leads_to or ()),
        sum(info.size for info in files), max((info.mtime_ns / 1e9 for info in files), default=time.time()), lock,
    )  # fmt: skip


def _files(folder: Folder, name: str) -> list[fs.FileInfo]:
    """Those in a folder, or the one file of that name."""
    info = folder.fs.get_file_info(folder.at(name))
    return [info] if info.type == fs.FileType.File else folder.files(name)


def _run_thing(run: StoredRun, inside: str) -> Thing:
    tags, links = run.tracked.tags, _made_by(run) | _needed_by(run.tracked.tags)
    for digest, uri in run.data:
        links |= _data_links(digest) | _places(uri)
    links |= {f"of-run:{run.tracked.run_id}", f"of:{run.tracked.run_id}", f"of:{run.tracked.key}"}
    if MODEL_TAG in tags:
        links.add(tags[MODEL_TAG])
    names = {f"maker:{tags[DIGEST_TAG]}"} if tags[STAGE_TAG] == "shard" and DIGEST_TAG in tags else set()
    place = _place(run.artifacts, inside)
    return Thing(_id(run), RUN, frozenset(names), frozenset(links), 0, run.changed, artifacts=place)


def _version_thing(version: StoredVersion, inside: str) -> Thing:
    model = version.model
    names = {f"of-run:{model.run_id}", f"model:{model.model_id}"}
    links = _needed_by(model.tags) | {f"runs:/{model.run_id}"}
    place = _place(version.artifacts, inside)
    return Thing(model.uri, VERSION, frozenset(names), frozenset(links), 0, version.changed, artifacts=place)


def _place(uri: str, inside: str) -> str:
    """Where artifacts are, if that is in our storage; a server's are not ours to take."""
    place = uri.removeprefix("file://")
    return place if place.startswith(f"{inside.rstrip('/')}/") else ""


def weighed(thing: Thing) -> Thing:
    """The same with its artifacts' bytes; only of what may go is it asked how large they are."""
    if not thing.artifacts:
        return thing
    return replace(thing, num_bytes=sum(info.size for info in Folder(thing.artifacts).files()))


def _id(run: StoredRun) -> str:
    return f"runs:/{run.tracked.run_id}"


def _uri(uri: str) -> str:
    return f"uri:{uri.rstrip('/')}"


def _places(uri: str) -> set[str]:
    """What is needed at a URI, and so under that name in this storage, which may be mounted elsewhere by now.

    A set that was added to has another digest: its place alone tells.
    """
    return {_uri(uri), "/".join(uri.rstrip("/").rsplit("/", 2)[-2:])} if uri else set()


def _data_links(digest: str) -> set[str]:
    """What goes with data: the shard set, the run that made it, and what was computed of it."""
    return {f"digest:{digest}", f"maker:{digest}", f"features:{digest}"}


def _needed_by(tags: dict[str, str]) -> set[str]:
    """The data that the tags of a run or a version name."""
    return (_data_links(tags[DIGEST_TAG]) if DIGEST_TAG in tags else set()) | _places(tags.get(URI_TAG, ""))


def _made_by(run: StoredRun) -> set[str]:
    """The names of what a run left in the storage. Only this may ever be garbage: of anything else we know too little.

    A shard set that was adopted, or of another tracking server's run, is none.
    """
    tags, stage, key = run.tracked.tags, run.tracked.tags[STAGE_TAG], run.tracked.key
    made = {f"configs/{stage}-{key}.json", f"of:{run.tracked.run_id}", f"of:{key}"}
    if stage in FOLDERS:
        made |= {f"{FOLDERS[stage]}/{key}", f"features:{key}"}
    if stage == "shard":
        made |= {f"configs/shard-{run.experiment}-{key}{how}.json" for how in ("", "-append")}
        made |= {*_data_links(tags[DIGEST_TAG]), _uri(tags[URI_TAG])} if DIGEST_TAG in tags else set()
    if stage == "retrain":
        made.add(f"configs/retrain-{run.experiment}")
    made |= {f"features:{tags[tag]}" for tag in (DIGEST_TAG, FEATURES_OF_TAG) if tag in tags}
    return made
