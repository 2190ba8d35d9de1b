import dataclasses

import pytest

from diffusion.data.shard_set import ShardSet
from diffusion.files import Folder
from diffusion.process import DiffusionConfig
from workflows.config import Config, ModelConfig, SampleStage, ShardStage, TrainStage
from workflows.tracking import ModelVersion
from workflows.train import run_key
from workflows.training.fit_on_ray import check_room

CONFIG = Config(name="x")


def shards(digest="d"):
    return ShardSet(
        image_size=8, channels=1, classes=[], config={}, config_fingerprint="", source_fingerprint="",
        folder=Folder("/nowhere"), tars=[], rejects={}, digest=digest,
    )  # fmt: skip


def changed(**parts):
    return run_key(dataclasses.replace(CONFIG, **parts), shards())


@pytest.mark.parametrize(
    "parts",
    [
        {"train": TrainStage(num_workers=7)},
        {"train": TrainStage(cpus_per_worker=0.5)},
        {"train": TrainStage(log_every=1, checkpoint_every=1, keep_checkpoints=9, max_failures=0)},
        {"sample": SampleStage(guidance=3.0, num=7)},
        {"shard": ShardStage(num_workers=5)},
        {"name": "y"},
    ],
)
def test_what_does_not_affect_the_weights_is_not_part_of_a_runs_identity(parts):
    assert changed(**parts) == run_key(CONFIG, shards())


@pytest.mark.parametrize(
    "parts",
    [
        {"train": TrainStage(steps=7)},
        {"train": TrainStage(seed=1)},
        {"train": TrainStage(global_batch=64)},
        {"train": TrainStage(num_lanes=32)},
        {"train": TrainStage(shuffle_window=7)},
        {"train": TrainStage(ema_decays=(0.5,))},
        {"model": ModelConfig(base_channels=64)},
        {"model": ModelConfig(chunk=7)},
        {"diffusion": DiffusionConfig(prediction="v")},
    ],
)
def test_what_affects_the_model_is(parts):
    assert changed(**parts) != run_key(CONFIG, shards())


def test_the_weights_that_it_begins_with_are_part_of_it_and_not_what_they_are_called():
    starts = [
        ModelVersion(name, number, "", {"ddpm.weights_sha256": sha256}, "")
        for name, number, sha256 in [("x", "1", "aa"), ("y", "2", "aa"), ("x", "3", "bb")]
    ]
    keys = [run_key(CONFIG, shards(), start) for start in (None, *starts)]

    assert changed(train=TrainStage(init_from="x/1")) == keys[0]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_other_data_is_another_run():
    assert run_key(CONFIG, shards("other")) != run_key(CONFIG, shards())


def test_auto_precision_is_the_run_of_the_precision_that_it_stands_for():
    explicit = {changed(train=TrainStage(precision=precision)) for precision in ("fp32", "bf16")}

    assert changed(train=TrainStage(precision="auto")) in explicit
    assert len(explicit) == 2


def test_a_cluster_without_room_for_the_workers_is_refused_with_what_is_missing():
    check_room({"CPU": 4.0}, TrainStage(num_workers=2, cpus_per_worker=2))
    check_room({"CPU": 4.0}, TrainStage(num_workers=3, cpus_per_worker=2, min_workers=2))

    with pytest.raises(ValueError, match="3 with 2 CPU each take 6, but the cluster has 4"):
        check_room({"CPU": 4.0}, TrainStage(num_workers=3, cpus_per_worker=2))
    with pytest.raises(ValueError, match="1 GPU each take 2, but the cluster has 0"):
        check_room({"CPU": 4.0}, TrainStage(num_workers=2, cpus_per_worker=1, use_gpu=True))
