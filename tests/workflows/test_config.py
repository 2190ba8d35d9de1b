import dataclasses

import pytest
import yaml

from diffusion.unet import UNet
from workflows.commands.presets import PRESETS, preset
from workflows.config import (
    Config,
    RestoreStage,
    SampleStage,
    ShardStage,
    TrainStage,
)
from workflows.config_file import from_plain, read_config, to_yaml


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_as_yaml_and_read_back(name, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(preset(name)))

    assert read_config(str(file)) == preset(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_own_pictures(name):
    config = preset(name)

    assert config.unet(config.shard.image_size, 1, 10).image_size == config.shard.image_size


def test_the_cifar10_preset_is_the_canonical_network_with_the_canonical_recipe():
    config = preset("cifar10")

    assert sum(p.numel() for p in UNet(config.unet(32, image_channels=3, num_classes=0)).parameters()) == 35_746_307
    assert (config.train.steps, config.train.global_batch, config.train.lr) == (800_000, 128, 2e-4)
    assert (config.train.warmup_steps, config.train.grad_clip, config.train.ema_decays) == (5000, 1.0, (0.9999,))
    assert (config.diffusion.schedule, config.diffusion.prediction, config.diffusion.loss) == (
        "linear",
        "eps",
        "simple",
    )
    assert (config.diffusion.variance, config.model.dropout, config.train.flip) == ("fixed_large", 0.1, True)


def test_what_a_file_leaves_out_has_the_dataclass_default():
    assert from_plain({"name": "mine", "train": {"steps": 7}}) == Config(name="mine", train=TrainStage(steps=7))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "x", "train": {"stepz": 3}}, "unknown key train.stepz"),
        ({"name": "x", "trian": {}}, "unknown key trian"),
        ({}, "missing key name"),
        ({"name": "x", "train": {"steps": 0}}, "train: steps must be at least 1, got 0"),
        ({"name": "x", "train": {"steps": "many"}}, "train.steps: .*'many'"),
        ({"name": "x", "train": {"precision": "fp8"}}, "train.precision: .*fp8"),
        ({"name": "x", "train": 3}, "train must be a mapping"),
        ({"name": "x", "train": {"steps": 1.7}}, "train.steps: must be a whole number, got 1.7"),
        ({"name": "x", "train": {"steps": True}}, "train.steps: must be a whole number, got True"),
        ({"name": "x", "train": {"use_gpu": "no"}}, "train.use_gpu: must be true or false, got 'no'"),
        ({"name": "x", "train": {"lr": None}}, "train.lr: must be a number, got None"),
        ({"name": "x", "sample": {"steps": 2000}}, "sample.steps must be at most .*1000, got 2000"),
        ({"name": "x", "restore": {"masks": "m", "damage": "box"}}, "restore: masks must not be given with a damage"),
        ({"name": "x", "restore": {"masks": "m", "noise_std": 9}}, "restore: masks must not be given with a damage"),
        ({"name": "x", "diffusion": {"loss": "hybrid"}}, "diffusion: loss must be one of simple, .* got 'hybrid'"),
        ({"name": "x", "train": {"snapshot_every": 5}}, "snapshot_every must be .* ema_stds must be given .* got 5"),
        ({"name": "x", "train": {"ema_stds": [0.4]}}, r"train: ema std must lie in \(0, 0.289\), got 0.4"),
        ({"name": "x", "train": {"ema_decays": []}}, "ema_decays or ema_stds must name at least one average"),
        ({"name": "../x"}, "name must be 1 to 100 letters.*got '../x'"),
        ([1], "a config must be a mapping"),
        (None, "a config must be a mapping"),
    ],
)
def test_an_unknown_key_or_an_impossible_value_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message) as raised:
        from_plain(value)

    assert "\n" not in str(raised.value)


def test_a_config_that_is_not_there_or_not_yaml_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("{: :")

    with pytest.raises(ValueError, match="there is none at"):
        read_config(str(tmp_path / "absent.yaml"))
    with pytest.raises(ValueError, match="is not YAML"):
        read_config(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        (ShardStage, "num_workers", 0),
        (ShardStage, "cpus_per_worker", 0.0),
        (TrainStage, "num_workers", 65),
        (TrainStage, "checkpoint_every", 0),
        (TrainStage, "keep_checkpoints", 0),
        (TrainStage, "log_every", 0),
        (TrainStage, "max_failures", -1),
        (TrainStage, "snapshot_every", -1),
        (SampleStage, "num", 0),
        (RestoreStage, "num", -1),
    ],
)
def test_a_stage_refuses_what_a_job_cannot_do(stage, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got {value}"):
        stage(**{field: value})


def test_workers_do_not_change_the_fingerprint_of_a_shard_set_but_everything_else_does():
    stage = ShardStage()
    others = {"source": "x", "image_size": 8, "channels": 3, "samples_per_shard": 1, "val_fraction": 0.5, "seed": 1}
    changed = [dataclasses.replace(stage, **{name: value}) for name, value in others.items()]

    assert dataclasses.replace(stage, num_workers=7, cpus_per_worker=0.5).fingerprint == stage.fingerprint
    assert stage.fingerprint not in {other.fingerprint for other in changed}


def test_the_yaml_names_every_field_of_every_stage():
    tree = yaml.safe_load(to_yaml(preset("digits")))
    stages = {"shard": ShardStage, "train": TrainStage, "sample": SampleStage, "restore": RestoreStage}

    assert {name: set(tree[name]) for name in stages} == {
        name: {f.name for f in dataclasses.fields(stage)} for name, stage in stages.items()
    }
