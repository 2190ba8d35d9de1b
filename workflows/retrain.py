"""`ddpm retrain`: what has come in, a candidate trained on it, and the gate between it and the champion.

The decision is written down, in a run of its own in MLflow, before it is carried out: whatever is killed, the next call
finishes what was decided.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from diffusion.sampling import SamplerConfig
from diffusion.settings import narrowed

from . import report, train
from .champions.gate import Decision, decide
from .champions.promotion import PROMOTED, REFUSED, carry_out, history
from .cluster.client import folder_on, open_client
from .cluster.jobs import (
    JobRequest,
    attach_or_submit,
    attempts_of,
    cluster_address,
    follow,
    live_in,
    own_id,
    remote_request,
    which,
)
from .config import EvaluateStage, GateConfig, JudgeConfig, Workers
from .config_file import to_plain
from .progress import say
from .run import Stages, drawable
from .storage import JobFailed, check_storage, locked
from .tracking import (
    DIGEST_TAG,
    MODEL_TAG,
    OUTCOME_TAG,
    REASONS_TAG,
    ModelVersion,
    TrackedRun,
    Tracker,
    champion_of,
    check_server,
    find_version,
    why_foreign,
)

if TYPE_CHECKING:
    from diffusion.data.shard_set import ShardSet

    from .config import Config
    from .storage import Environment

STAGE = "retrain"
SKIPPED, BUSY = "skipped", "busy"
DECISION_TAG, REPORT_TAG = "ddpm.decision", "ddpm.report"


@dataclass(frozen=True)
class Retrained:
    """What a retraining came to."""

    outcome: str
    """promoted, refused, skipped, or busy: another one is at work"""
    reasons: list[str]
    run: str = ""
    """its id in MLflow"""
    candidate: str = ""
    champion: str = ""
    """which the candidate was compared with"""
    report: str = ""
    """URI of the page"""


def run(config: Config, environment: Environment) -> Retrained:
    """Refresh the data, train, compare with the champion, and promote or refuse.

    On a cluster, all of it is a job called after the model. Raises ValueError if there is no data yet,
    JobFailed where a stage fails.
    """
    check_server(environment)
    check_storage(environment)
    cluster, key = cluster_address(environment), f"{STAGE}-{config.name}"
    if cluster and not own_id().startswith(f"{key}-a"):
        return _on_cluster(config, environment, cluster, key)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(environment, key, wait_s=0))
        except JobFailed as err:
            return _busy(str(err))
        return _retrain(config, environment)


def _on_cluster(config: Config, environment: Environment, address: str, key: str) -> Retrained:
    """The id of the job is the lock: there is one job of this name at a time."""
    client = open_client(address)
    if live := live_in(attempts_of(client, key)):
        return _busy(f"job {live} at {address} is at work on it")
    request = request_of(config, environment, key, folder_on(client))
    job_id, attached = attach_or_submit(client, request)
    if attached:
        return _busy(f"job {job_id} at {address} is at work on it")
    say(which(job_id, attached))
    follow(client, job_id)
    done = Tracker(environment).newest(config.name, STAGE)
    if done is None:
        raise JobFailed(f"the {STAGE} job succeeded, but its run is not in {environment.mlflow_uri}")
    return _result(done)


def request_of(config: Config, environment: Environment, key: str, folder: str) -> JobRequest:
    """All of a retraining as a job. Its config is called by its content too: one beside it must not change it."""
    told = (json.dumps(to_plain(config), indent=2, sort_keys=True) + "\n").encode()
    uri = (environment.folder / "configs" / f"{key}-{hashlib.sha256(told).hexdigest()[:16]}.json").uri
    places = ["--storage", environment.folder.uri, "--tracking-uri", environment.mlflow_uri]
    return remote_request(key, (STAGE, "--config", uri, *places), folder=folder, files={uri: told})


def _busy(why: str) -> Retrained:
    say(f"retrain: {why}")
    return Retrained(BUSY, [why])


def _retrain(config: Config, environment: Environment) -> Retrained:
    tracker = Tracker(environment)
    left = tracker.newest(config.name, STAGE)
    if left is not None and left.status != "FINISHED" and DECISION_TAG in left.tags:
        say(f"retrain: finishing what run {left.run_id} decided")
        with tracker.ending(left.run_id):
            _finish(environment, tracker, left.run_id)
        return _result(tracker.run(left.run_id))
    stages = Stages(config, environment)
    shards = stages.refreshed()
    champion = champion_of(tracker, config.name)
    if why := reason_to_skip(config, shards, champion):
        return _skip(config, tracker, shards, champion, why)
    stages.config = config = drawable(_started(config, shards, champion), shards)
    key = retrain_key(config, tracker, shards, champion)
    if (done := tracker.finished(config.name, STAGE, key)) is not None:  # even if somebody has undone it since
        why = f"decided already, by run {done.run_id}: {done.tags[OUTCOME_TAG]}"
        return _skip(config, tracker, shards, champion, why)
    run_id = tracker.start(config.name, STAGE, key, {DIGEST_TAG: shards.digest}, to_plain(config.retrain))
    with tracker.ending(run_id):
        tracker.log_dataset(run_id, config.name, shards.digest, shards.folder.uri)
        tracker.tag(run_id, _decide(stages, tracker, run_id, shards, champion))
        _finish(environment, tracker, run_id)
    return _result(tracker.run(run_id))


def reason_to_skip(config: Config, shards: ShardSet, champion: ModelVersion | None) -> str:
    """Why there is nothing to do; "" if there is. How many pictures a champion of an older ddpm has seen is not known.

    Raises ValueError for a champion that is none of ours, which no candidate can be compared with.
    """
    if champion is None:
        return ""
    if reason := why_foreign(champion):
        raise ValueError(
            f"champion must be a version that ddpm made: {reason}; make another one champion: ddpm promote"
        )
    if champion.tags[DIGEST_TAG] == shards.digest:
        return f"the data is what version {champion.version}, the champion, was trained on"
    num = sum(shards.counts.values()) - int(champion.tags.get(train.NUM_TAG, 0))
    if num < config.retrain.min_new:
        return f"{num} pictures have come since version {champion.version}, fewer than min_new={config.retrain.min_new}"
    return ""


def _skip(config: Config, tracker: Tracker, shards: ShardSet, champion: ModelVersion | None, why: str) -> Retrained:
    """A run that says why nothing was done."""
    say(f"retrain: skipped: {why}")
    model = {} if champion is None else {MODEL_TAG: champion.uri}
    tags = {DIGEST_TAG: shards.digest, **model, OUTCOME_TAG: SKIPPED, REASONS_TAG: json.dumps([why])}
    run_id = tracker.start(config.name, STAGE, f"skipped-{shards.digest}", tags, to_plain(config.retrain))
    with tracker.ending(run_id):
        return _result(tracker.run(run_id))


def _started(config: Config, shards: ShardSet, champion: ModelVersion | None) -> Config:
    """The same, with the weights to begin with: the champion's where they fit, as they do not after a new class."""
    begun = ""
    if champion is not None and not config.retrain.fresh:
        begun = champion.uri
        try:
            train.start_weights(champion, config, shards)
        except ValueError as err:
            say(f"retrain: training at random weights: {err}")
            begun = ""
    return replace(config, train=replace(config.train, init_from=begun))


def retrain_key(config: Config, tracker: Tracker, shards: ShardSet, champion: ModelVersion | None) -> str:
    """The identity of a decision: a hash of all that affects it (16 hex characters)."""
    stage = config.sample
    trained = train.run_key(config, shards, train.start_of(config, tracker))
    drawn = [narrowed(SamplerConfig, stage), narrowed(JudgeConfig, stage), stage.num, stage.seed, stage.labels]
    parts = [trained, "" if champion is None else champion.uri, drawn, narrowed(GateConfig, config.retrain)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _decide(
    stages: Stages, tracker: Tracker, run_id: str, shards: ShardSet, champion: ModelVersion | None
) -> dict[str, str]:
    """Train, draw, measure, decide; the decision as tags of the run."""
    config = stages.config
    model = stages.model(shards)
    drawn = stages.samples(model)
    stage = how_to_judge(config, shards)
    ours = stages.evaluation(drawn, shards, stage).metrics
    theirs = None
    if champion is not None:
        theirs = stages.evaluation(stages.samples(champion), shards, stage).metrics
    decision = decide(ours, theirs, config.retrain, retrained=True)
    of = {"candidate": ours, "champion": theirs or {}}
    tracker.log_metrics(run_id, {f"{who}/{name}": value for who in of for name, value in of[who].items()})
    kept = {
        "promoted": decision.promoted,
        "reasons": decision.reasons,
        "candidate": model.uri,
        "champion": "" if champion is None else champion.uri,
        "samples": drawn.tracked.run_id,
    }
    return {MODEL_TAG: model.uri, DECISION_TAG: json.dumps(kept)}


def how_to_judge(config: Config, shards: ShardSet) -> EvaluateStage:
    """Beside held-out pictures, which neither has seen, if there are some; by class, if there are classes."""
    kinds = {config.retrain.measure, *(["dataset"] if shards.classes else [])}
    settings = narrowed(JudgeConfig, config.sample) | narrowed(Workers, config.sample)
    return EvaluateStage(
        **{**settings, "features": tuple(sorted(kinds))},
        reference="val" if shards.num_samples("val") > 1 else "train",  # a distance takes two
    )


def _finish(environment: Environment, tracker: Tracker, run_id: str) -> None:
    """Carry a decision out, as often as it takes: the alias, the reasons as tags, the report."""
    kept = json.loads(tracker.run(run_id).tags[DECISION_TAG])
    decision = Decision(kept["promoted"], tuple(kept["reasons"]))
    name, _, number = kept["candidate"].removeprefix("models:/").rpartition("/")
    if (candidate := find_version(tracker, name, number)) is None:
        decision = Decision(False, (f"{kept['candidate']} was deleted meanwhile",))
    elif (by := f"{STAGE} {run_id}") not in {event.by for event in history(tracker, name)}:  # else undone since, maybe
        decision = carry_out(tracker, candidate, kept["champion"].rpartition("/")[2], decision, by)
    outcome = PROMOTED if decision.promoted else REFUSED
    for reason in decision.reasons:
        say(f"retrain: {outcome}: {reason}")
    tracker.tag(run_id, {OUTCOME_TAG: outcome, REASONS_TAG: json.dumps(decision.reasons)})
    try:
        page = report.run(environment, kept["samples"], also=run_id)
    except ValueError as err:  # its samples were deleted meanwhile
        say(f"retrain: no report: {err}")
    else:
        tracker.tag(run_id, {REPORT_TAG: page.uri})


def _result(run: TrackedRun) -> Retrained:
    kept = json.loads(run.tags.get(DECISION_TAG, "{}"))
    return Retrained(
        outcome=run.tags[OUTCOME_TAG],
        reasons=json.loads(run.tags[REASONS_TAG]),
        run=run.run_id,
        candidate=kept.get("candidate", ""),
        champion=kept.get("champion", run.tags.get(MODEL_TAG, "")),
        report=run.tags.get(REPORT_TAG, ""),
    )
