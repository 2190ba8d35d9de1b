"""What came of what: a tree from a data digest over trainings and models to sample runs, read from MLflow's tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .registry import versions_of_run
from .runs import DIGEST_TAG, GIT_TAG, MODEL_TAG, OUTCOME_TAG, STAGE_TAG, START_TAG, TRAINING_TAG, URI_TAG

if TYPE_CHECKING:
    from .registry import ModelVersion
    from .runs import TrackedRun, Tracker

DATA, MODEL = "data", "model"
MAKERS = ("shard", "train")
DRAWN = ("sample", "restore", "retrain")
"""stages of runs that a model was used in"""
SHOWN_TAGS = {START_TAG: "from {}", OUTCOME_TAG: "{}", GIT_TAG: "git {:.10}"}
SHOWN_PARAMS = ("num", "seed", "sampler", "steps", "guidance", "train.steps", "train.num_workers")


@dataclass(frozen=True)
class Node:
    """A thing, and what came of it."""

    kind: str
    """data, shard, train, model, sample, restore, retrain or picture"""
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
    drawn = [run for run in runs if run.tags.get(STAGE_TAG) in DRAWN]
    made = [
        Node(run.tags[STAGE_TAG], run.run_id, _detail(run), _models(tracker, run, drawn))
        for run in runs
        if run.tags.get(STAGE_TAG) in MAKERS
    ]
    return Node(DATA, digest, ", ".join(uris), made)


def _models(tracker: Tracker, run: TrackedRun, drawn: list[TrackedRun]) -> list[Node]:
    """The versions that a run registered, each with what was drawn of it."""
    return [
        Node(
            MODEL,
            version.uri,
            ", ".join(f"@{alias}" for alias in version.aliases),
            [Node(d.tags[STAGE_TAG], d.run_id, _detail(d)) for d in drawn if d.tags.get(MODEL_TAG) == version.uri],
        )
        for version in versions_of_run(tracker, run.run_id)
    ]


def _detail(run: TrackedRun) -> str:
    """The few words that tell a run from its siblings."""
    said = [f"{name.removeprefix('train.')} {run.params[name]}" for name in SHOWN_PARAMS if run.params.get(name)]
    said += [words.format(run.tags[tag]) for tag, words in SHOWN_TAGS.items() if run.tags.get(tag)]
    return ", ".join([run.status, *said])
