"""`ddpm run`: all the stages, each as a Ray job of its own, reusing what is done; ends with what came of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from diffusion.data.sources import check_source

from . import evaluate, sample, shard, train
from .champions.gate import Decision, decide
from .champions.promotion import carry_out
from .cluster.client import folder_on, open_client
from .cluster.jobs import cluster_address, local_request, remote_request, run_job
from .cluster.local import start_local_ray
from .config_file import to_plain
from .logged_samples import GRID
from .progress import say
from .storage import JobFailed, check_storage
from .tracking import DIGEST_TAG, Tracker, champion_of, check_server, why_foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusion.data.shard_set import ShardSet

    from .cluster.client import Client
    from .config import Config, EvaluateStage
    from .storage import Environment
    from .tracking import ModelVersion, TrackedRun

R = TypeVar("R")


@dataclass(frozen=True)
class RunResult:
    """What a whole run came to."""

    data: str
    digest: str
    model: str
    champion: bool
    why: str
    samples: str
    sample_run: str
    grid: str
    metrics: dict[str, float]
    reused: list[str]


def run(config: Config, environment: Environment) -> RunResult:
    """Shard, train, sample, promote. Raises ValueError for bad input, JobFailed where a stage fails."""
    data = config.shard
    check_source(data.source, data.image_column, data.label_column)  # raises before anything is started or made
    config.unet(config.shard.image_size, image_channels=3, num_classes=0)  # raises if network and pictures do not fit
    check_server(environment)
    check_storage(environment)
    stages = Stages(config, environment)
    with ThreadPoolExecutor(1) as pool:  # making MLflow's database takes seconds: while the shards are made
        experiment = pool.submit(Tracker(environment).experiment, config.name)
        shards = stages.shards()
        experiment.result()
    stages.config = drawable(config, shards)
    model = stages.model(shards)
    samples = stages.samples(model)
    decision = crown(stages, model, samples)
    return RunResult(
        data=shards.folder.uri,
        digest=shards.digest,
        model=model.uri,
        champion=decision.promoted,
        why=decision.why,
        samples=samples.folder.uri,
        sample_run=samples.tracked.run_id,
        grid=f"{samples.folder.uri}/{GRID}",
        metrics=samples.tracked.metrics,
        reused=stages.reused,
    )


def drawable(config: Config, shards: ShardSet) -> Config:
    """The same, without guidance where there are no classes to guide to."""
    if shards.classes or config.sample.guidance == 1:
        return config
    say(f"guidance {config.sample.guidance:g} is for data with classes; this has none: drawing without")
    return replace(config, sample=replace(config.sample, guidance=1.0))


def crown(stages: Stages, model: ModelVersion, samples: sample.SampleRun) -> Decision:
    """Make the model champion if there is none, or if the gate says so; whether it is champion now, and why.

    The champion's samples are drawn with the same settings. What distances to other data say is for `retrain`.
    """
    tracker = Tracker(stages.environment)
    champion = champion_of(tracker, model.name)
    if champion is not None and champion.version == model.version:
        why = champion.tags.get("ddpm.champion_why", "")
        carry_out(tracker, model, "", Decision(True, (why,)), "run")  # tells of it, if a killed run did not
        return Decision(True, ("it already was",))
    if champion is not None and (reason := why_foreign(champion)):
        decision = Decision(False, (f"there is nothing to compare with: {reason}; see ddpm promote",))
    elif champion is not None and champion.tags[DIGEST_TAG] != model.tags[DIGEST_TAG]:
        decision = Decision(False, (f"version {champion.version} was trained on other data: see ddpm retrain",))
    else:
        beside = None if champion is None else stages.samples(champion).tracked.metrics
        decision = decide(samples.tracked.metrics, beside, stages.config.retrain)
    return carry_out(tracker, model, "" if champion is None else champion.version, decision, "run")


class Stages:
    """Each stage's result: found where it is done, else made by a Ray job and then found."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config, self.environment = config, environment
        self.reused: list[str] = []
        self._cluster = cluster_address(environment)
        self._local_address = ""
        self._client: Client | None = None

    def shards(self) -> ShardSet:
        """The shard set."""
        stage, out = self.config.shard, self.environment.data(self.config.name)
        key = f"{self.config.name}-{stage.fingerprint[:16]}"
        return self._result("shard", key, lambda: shard.finished(stage, out), made=lambda: shard.committed(stage, out))

    def refreshed(self) -> ShardSet:
        """The shard set, with shards for what its source has got since. Raises FileNotFoundError if there is none."""
        stage, out = self.config.shard, self.environment.data(self.config.name)
        key = f"{self.config.name}-{stage.fingerprint[:16]}-append"
        return self._result(
            "shard", key, lambda: shard.up_to_date(stage, out), ("--append",), made=lambda: shard.extended(stage, out)
        )

    def model(self, shards: ShardSet) -> ModelVersion:
        """The trained model's version."""
        key = train.run_key(self.config, shards, train.start_of(self.config, Tracker(self.environment)))
        return self._result("train", key, lambda: train.finished(self.config.name, self.environment, key))

    def samples(self, model: ModelVersion) -> sample.SampleRun:
        """The sample run."""
        key = sample.sample_key(self.config.sample, model)
        flags = ("--model", model.uri)
        return self._result("sample", key, lambda: sample.finished(self.config.sample, self.environment, model), flags)

    def evaluation(self, samples: sample.SampleRun, data: ShardSet, stage: EvaluateStage) -> TrackedRun:
        """The samples measured beside this data."""
        run_id, where = samples.tracked.run_id, self.environment
        key = f"{run_id}-{data.digest[:16]}"
        words = (run_id, "--data", data.folder.uri, *_evaluate_flags(stage))
        return self._result("evaluate", key, lambda: evaluate.finished(where, run_id, data, stage), words, told=False)

    def _result(
        self,
        stage: str,
        key: str,
        find: Callable[[], R | None],
        words: tuple[str, ...] = (),
        told: bool = True,
        made: Callable[[], R | None] | None = None,
    ) -> R:
        """`told`: the stage is told its settings by a config, which it reads from the storage.

        `made`: finds what a job has just made, where `find` also asks whether there is more to do by now.
        """
        if (found := find()) is not None:
            say(f"{stage}: already done, reused")
            self.reused.append(stage)
            return found
        client = self._connect()
        argv = (stage, *(self._config(stage, key) if told else ()), *words, *self._places())
        request = local_request(f"{stage}-{key}", argv)
        if self._cluster:
            request = remote_request(f"{stage}-{key}", argv, folder=folder_on(client))
        run_job(client, request)
        if (found := (made or find)()) is None:
            raise JobFailed(f"the {stage} job succeeded, but its result is not in {self.environment.storage}")
        return found

    def _connect(self) -> Client:
        if self._client is None:
            self._client = open_client(self._cluster or self._start_ray())
        return self._client

    def _start_ray(self) -> str:
        say("starting Ray on this machine")
        ray = start_local_ray()
        self._local_address = ray.address
        return ray.dashboard

    def _config(self, stage: str, key: str) -> list[str]:
        """The config as a file in the storage, which the cluster reaches too."""
        folder, name = self.environment.folder / "configs", f"{stage}-{key}.json"
        folder.write_json(name, to_plain(self.config))
        return ["--config", (folder / name).uri]

    def _places(self) -> list[str]:
        places = ["--storage", self.environment.folder.uri, "--tracking-uri", self.environment.mlflow_uri]
        if self._local_address:  # else the job finds its own cluster
            places += ["--address", self._local_address]
        return places


def _evaluate_flags(stage: EvaluateStage) -> list[str]:
    """Its settings as `ddpm evaluate` takes them; none has a list of none."""
    values = {
        "--features": stage.features,
        "--reference": [stage.reference],
        "--reference-images": [stage.reference_images],
        "--bits-images": [stage.bits_images],
        "--inception-weights": [stage.inception_weights] if stage.inception_weights else [],
        "--num-workers": [stage.num_workers],
        "--cpus-per-worker": [stage.cpus_per_worker],
    }
    return [word for flag, given in values.items() if given for word in (flag, *map(str, given))]
