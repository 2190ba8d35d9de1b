"""What came of what: a tree from a data digest over trainings and models to sample runs, read from MLflow's tags."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .registry import versions_of_run
from .runs import DIGEST_TAG, GIT_TAG, MODEL_TAG, OUTCOME_TAG, SAMPLE_TAG, STAGE_TAG, START_TAG, TRAINING_TAG, URI_TAG

if TYPE_CHECKING:
    from .registry import ModelVersion
    from .runs import TrackedRun, Tracker

DATA, MODEL, TRAIN = "data", "model", "train"
SHOWN_TAGS = {START_TAG: "from {}", OUTCOME_TAG: "{}", GIT_TAG: "git {:.10}"}
SHOWN_PARAMS = ("num", "seed", "sampler", "steps", "guidance", "train.steps", "train.num_workers")


@dataclass(frozen=True)
class Node:
    """A thing, and what came of it."""

    kind: str
    """data, model, picture, or the stage of a run: shard, train, sample, …"""
    id: str
    """digest, run id, models:/NAME/VERSION, or RUN/KEY"""
    detail: str = ""
    children: list[Node] = field(default_factory=list)


def lineage_tags(model: ModelVersion) -> dict[str, str]:
    """The edges of the lineage that lead to what a model drew: data, training run, model."""
    return {MODEL_TAG: model.uri, TRAINING_TAG: model.run_id, DIGEST_TAG: model.tags[DIGEST_TAG]}


def tree_of(tracker: Tracker, digest: str) -> Node:
    """All that came of the data with this digest. Raises ValueError if nothing is known of it."""
    runs = tracker.tagged(DIGEST_TAG, digest)
    if not runs:
        raise ValueError(f"id must be a digest, a run or a model that {tracker.uri} knows, got {digest!r}")
    uris = sorted({run.tags[URI_TAG] for run in runs if URI_TAG in run.tags})
    models = {run.run_id: versions_of_run(tracker, run.run_id) for run in runs if run.tags.get(STAGE_TAG) == TRAIN}
    known = {run.run_id for run in runs} | {version.uri for made in models.values() for version in made}
    below = defaultdict[str, list["TrackedRun"]](list)
    for run in runs:
        below[_came_of(run, known)].append(run)

    def of_run(run: TrackedRun) -> Node:
        children = [*map(of_model, models.get(run.run_id, ())), *map(of_run, below[run.run_id])]
        return Node(run.tags.get(STAGE_TAG, "run"), run.run_id, _detail(run), children)

    def of_model(version: ModelVersion) -> Node:
        aliases = ", ".join(f"@{alias}" for alias in version.aliases)
        return Node(MODEL, version.uri, aliases, [of_run(run) for run in below[version.uri]])

    return Node(DATA, digest, ", ".join(uris), [of_run(run) for run in below[DATA]])


def _came_of(run: TrackedRun, known: set[str]) -> str:
    """What a run hangs under: the samples that it measured, the model that it drew with, else the data."""
    worked_with = [run.tags.get(tag, "") for tag in (SAMPLE_TAG, MODEL_TAG)]
    return next((id_ for id_ in worked_with if id_ in known), DATA)


def _detail(run: TrackedRun) -> str:
    """The few words that tell a run from its siblings."""
    said = [f"{name.removeprefix('train.')} {run.params[name]}" for name in SHOWN_PARAMS if run.params.get(name)]
    said += [words.format(run.tags[tag]) for tag, words in SHOWN_TAGS.items() if run.tags.get(tag)]
    return ", ".join([run.status, *said])
