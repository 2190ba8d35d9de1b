"""`ddpm run`: all the stages, each as a Ray job of its own, reusing what is done; ends with what came of it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from diffusion.data.sources import check_source

from . import sample, shard, train
from .config_file import to_plain
from .jobs import local_request, open_client, remote_request, run_job
from .local_ray import start_local_ray
from .progress import say
from .promotion import promote
from .storage import JobFailed, check_storage
from .tracking import Tracker, check_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.job_submission import JobSubmissionClient

    from diffusion.data.shard_set import ShardSet

    from .config import Config
    from .storage import Environment
    from .tracking import ModelVersion

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
    if not shards.classes and config.sample.guidance != 1:
        say(f"guidance {config.sample.guidance:g} is for data with classes; this has none: drawing without")
        stages.config = config = replace(config, sample=replace(config.sample, guidance=1.0))
    model = stages.model(shards)
    samples = stages.samples(model)
    champion, why = promote(Tracker(environment), model, samples.tracked)
    return RunResult(
        data=shards.folder.uri,
        digest=shards.digest,
        model=model.uri,
        champion=champion,
        why=why,
        samples=samples.folder.uri,
        sample_run=samples.tracked.run_id,
        grid=f"{samples.folder.uri}/{sample.GRID}",
        metrics=samples.tracked.metrics,
        reused=stages.reused,
    )


class Stages:
    """Each stage's result: found where it is done, else made by a Ray job and then found."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config, self.environment = config, environment
        self.reused: list[str] = []
        self._local_address = ""
        self._client: JobSubmissionClient | None = None

    def shards(self) -> ShardSet:
        """The shard set."""
        stage, out = self.config.shard, self.environment.data(self.config.name)
        key = f"{self.config.name}-{stage.fingerprint[:16]}"
        return self._result("shard", key, lambda: shard.finished(stage, out))

    def model(self, shards: ShardSet) -> ModelVersion:
        """The trained model's version."""
        key = train.run_key(self.config, shards)
        return self._result("train", key, lambda: train.finished(self.config, self.environment, shards))

    def samples(self, model: ModelVersion) -> sample.SampleRun:
        """The sample run."""
        key = sample.sample_key(self.config.sample, model)
        flags = ("--model", model.uri)
        return self._result("sample", key, lambda: sample.finished(self.config, self.environment, model), flags)

    def _result(self, stage: str, key: str, find: Callable[[], R | None], flags: tuple[str, ...] = ()) -> R:
        if (found := find()) is not None:
            say(f"{stage}: already done, reused")
            self.reused.append(stage)
            return found
        client = self._connect()
        ask = local_request if self._local_address else remote_request
        run_job(client, ask(f"{stage}-{key}", self._command(stage, key, flags)))
        if (made := find()) is None:
            raise JobFailed(f"the {stage} job succeeded, but its result is not in {self.environment.storage}")
        return made

    def _connect(self) -> JobSubmissionClient:
        if self._client is None:
            address = self.environment.address or os.environ.get("RAY_ADDRESS", "")  # as in a job of a cluster
            self._client = open_client(address or self._start_ray())
        return self._client

    def _start_ray(self) -> str:
        say("starting Ray on this machine")
        ray = start_local_ray()
        self._local_address = ray.address
        return ray.dashboard

    def _command(self, stage: str, key: str, flags: tuple[str, ...]) -> tuple[str, ...]:
        """The stage's command, its config read from the storage, which the cluster reaches too."""
        folder, name = self.environment.folder / "configs", f"{stage}-{key}.json"
        folder.write_json(name, to_plain(self.config))
        if self._local_address:  # else the job finds its own cluster
            flags = (*flags, "--address", self._local_address)
        places = ["--storage", self.environment.folder.uri, "--tracking-uri", self.environment.mlflow_uri]
        return (stage, "--config", (folder / name).uri, *places, *flags)
