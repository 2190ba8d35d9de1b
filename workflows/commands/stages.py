"""Every command: the flags that it takes, and what it does; each imports its job only when it is called."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config import Config
from ..config_file import to_plain, to_yaml
from .arguments import (
    AverageArgs,
    ConfigArgs,
    EvaluateArgs,
    GcArgs,
    IndexArgs,
    LineageArgs,
    PullModelArgs,
    PullSamplesArgs,
    ReportArgs,
    RestoreArgs,
    RunArgs,
    SampleArgs,
    ShardArgs,
    TrainArgs,
    UiArgs,
    VerifyArgs,
)
from .command import Command
from .operations import OPERATOR_COMMANDS


def run_all(args: RunArgs) -> dict[str, Any]:
    """`ddpm run`."""
    from .. import run
    from .summary import show_run

    result = run.run(args.config, args.where)
    show_run(result, args.where)
    return asdict(result)


def shard(args: ShardArgs) -> dict[str, Any]:
    """`ddpm shard`."""
    from diffusion.files import Folder

    from .. import shard as stage
    from .summary import show_shards

    out = Folder(args.out) if args.out else args.where.data(args.name)
    shards = stage.run(Config(name=args.name, shard=args.shard), args.where, out, args.append)
    return show_shards(shards)


def index(args: IndexArgs) -> dict[str, Any]:
    """`ddpm index`."""
    from diffusion.files import Folder

    from .. import index as stage
    from .summary import show_shards

    return show_shards(stage.run(args.where, Folder(args.uri), args.workers))


def verify(args: VerifyArgs) -> dict[str, Any]:
    """`ddpm verify`."""
    from .. import verify as stage
    from .summary import show_verified

    return show_verified(stage.run(args.where, stage.find_set(args.where, args.uri), args.deep, args.workers))


def train(args: TrainArgs) -> dict[str, Any]:
    """`ddpm train`."""
    from diffusion.data.shard_set import open_shard_set
    from diffusion.files import Folder

    from .. import train as stage
    from .summary import show_model

    config = Config(name=args.name, train=args.train, model=args.model, diffusion=args.diffusion, sample=args.sample)
    shards = open_shard_set(Folder(args.data) if args.data else args.where.data(args.name))
    return show_model(stage.run(config, args.where, shards, args.fresh))


def average(args: AverageArgs) -> dict[str, Any]:
    """`ddpm average`."""
    from .. import average as stage
    from .summary import show_model

    return show_model(stage.run(args.where, args.model, args.std, args.step))


def sample(args: SampleArgs) -> dict[str, Any]:
    """`ddpm sample`."""
    from .. import sample as stage
    from ..tracking import Tracker, model_version
    from .summary import show_samples

    model = model_version(Tracker(args.where), args.model or args.name)
    saved = {name: value for name, value in model.sampler.items() if name in args.unsaid}
    return show_samples(stage.run(replace(args.sample, **saved), args.where, model))


def evaluate(args: EvaluateArgs) -> dict[str, Any]:
    """`ddpm evaluate`."""
    from .. import evaluate as stage
    from .summary import show_evaluation

    return show_evaluation(stage.run(args.where, args.what, args.data, args.split, args.evaluate))


def restore(args: RestoreArgs) -> dict[str, Any]:
    """`ddpm restore`."""
    from diffusion.files import Folder

    from .. import restore as stage
    from ..tracking import Tracker, model_version
    from .summary import show_restored

    model = model_version(Tracker(args.where), args.model or args.name)
    out = Folder(args.out) if args.out else None
    return show_restored(stage.run(Config(name=model.name, restore=args.restore), args.where, model, out))


def pull_model(args: PullModelArgs) -> dict[str, Any]:
    """`ddpm pull model`."""
    from ..pull import pull_model_to

    uri = pull_model_to(args.where, args.model, Path(args.destination), args.format)
    return _pulled({"model": uri, "destination": args.destination})


def pull_samples(args: PullSamplesArgs) -> dict[str, Any]:
    """`ddpm pull samples`."""
    from ..pull import pull_samples_to

    run_id = pull_samples_to(args.where, args.run, Path(args.destination), args.as_)
    return _pulled({"run": run_id, "destination": args.destination})


def report(args: ReportArgs) -> dict[str, Any]:
    """`ddpm report`."""
    from .. import report as stage
    from .summary import show_report

    return show_report(stage.run(args.where, args.run, args.out))


def show_lineage(args: LineageArgs) -> dict[str, Any]:
    """`ddpm lineage`."""
    from ..lineage import lineage, lines

    tree, asked = lineage(args.where, args.id)
    print("\n".join(lines(tree, asked)), file=sys.stderr if args.json else sys.stdout)
    return asdict(tree)


def collect(args: GcArgs) -> dict[str, Any]:
    """`ddpm gc`."""
    from .. import gc as stage
    from ..progress import say
    from .summary import show_collected

    return show_collected(stage.run(args.where, args.keep_days, args.delete, say), args.where)


def ui(args: UiArgs) -> dict[str, Any]:
    """`ddpm ui`: does not return until it is interrupted."""
    from ..ui import serve

    serve(args.where, args.port)


def show_config(args: ConfigArgs) -> dict[str, Any]:
    """`ddpm config`."""
    print(to_yaml(args.config), end="", file=sys.stderr if args.json else sys.stdout)
    return to_plain(args.config)


COMMANDS = {
    "run": Command(RunArgs, lambda c: RunArgs(config=c), run_all),
    "shard": Command(ShardArgs, lambda c: ShardArgs(name=c.name, shard=c.shard), shard),
    "index": Command(IndexArgs, None, index),
    "verify": Command(VerifyArgs, None, verify),
    "train": Command(
        TrainArgs,
        lambda c: TrainArgs(name=c.name, train=c.train, model=c.model, diffusion=c.diffusion, sample=c.sample),
        train,
    ),
    "average": Command(AverageArgs, None, average),
    "sample": Command(SampleArgs, lambda c: SampleArgs(name=c.name, sample=c.sample), sample),
    "evaluate": Command(EvaluateArgs, None, evaluate),
    "restore": Command(RestoreArgs, lambda c: RestoreArgs(name=c.name, restore=c.restore), restore),
    "pull model": Command(PullModelArgs, None, pull_model),
    "pull samples": Command(PullSamplesArgs, None, pull_samples),
    "report": Command(ReportArgs, None, report),
    "lineage": Command(LineageArgs, None, show_lineage),
    "gc": Command(GcArgs, None, collect),
    **OPERATOR_COMMANDS,
    "ui": Command(UiArgs, None, ui),
    "config": Command(ConfigArgs, lambda c: ConfigArgs(config=c), show_config),
}


def _pulled(result: dict[str, Any]) -> dict[str, Any]:
    print(f"ddpm: pulled {' into '.join(result.values())}", file=sys.stderr)
    return result
