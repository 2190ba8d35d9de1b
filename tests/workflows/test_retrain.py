"""`ddpm retrain` where nothing has to be trained: what it skips, what it finishes, what it leaves to others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from moved_storage import moved

from diffusion.data.layout import tar_name
from diffusion.data.shard_set import ShardSet, open_shard_set
from diffusion.data.shards import TarStats
from diffusion.files import Folder
from diffusion.process import DiffusionConfig
from workflows import retrain, train
from workflows.champions import promotion
from workflows.cli import WRONG_CALL, judged, understood
from workflows.commands.presets import preset
from workflows.commands.saved_config import saved_config, with_named
from workflows.config import Config, ModelConfig, RetrainStage, SampleStage, TrainStage
from workflows.config_file import read_config
from workflows.run import Stages, crown
from workflows.storage import Environment, locked
from workflows.tracking import ModelVersion, Tracker, champion_of, find_version, model_version

CONFIG = Config(name="x")


def shards(num, digest="new", classes=()):
    tars = [TarStats(name=tar_name("train", 0), shard=0, split="train", num_samples=num, num_bytes=0, sha256="")]
    return ShardSet(
        image_size=8, channels=1, classes=list(classes), config={}, config_fingerprint="", source_fingerprint="",
        folder=Folder("/nowhere"), tars=tars, rejects={}, digest=digest,
    )  # fmt: skip


def champion(digest="old", **tags):
    return ModelVersion("x", "3", "", {"ddpm.dataset_digest": digest, **tags}, "")


@pytest.mark.parametrize(
    ("of", "num", "min_new", "why"),
    [
        (None, 10, 5, ""),
        (champion("new"), 10, 1, "the data is what version 3, the champion, was trained on"),
        (champion(**{"ddpm.num_images": "10"}), 14, 5, "4 pictures have come since version 3, fewer than min_new=5"),
        (champion(**{"ddpm.num_images": "10"}), 15, 5, ""),
        (champion(), 10, 5, ""),
    ],
)
def test_nothing_is_done_for_the_same_data_or_too_little_new(of, num, min_new, why):
    config = replace(CONFIG, retrain=RetrainStage(min_new=min_new))

    assert retrain.reason_to_skip(config, shards(num), of) == why


def test_a_champion_that_somebody_else_registered_is_refused_in_a_line():
    with pytest.raises(ValueError, match="champion must be a version that ddpm made: models:/x/3 was registered by"):
        retrain.reason_to_skip(CONFIG, shards(10), ModelVersion("x", "3", "", {}, ""))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"train": TrainStage(num_workers=1)}, True),
        ({"sample": SampleStage(num_workers=1)}, True),
        ({"retrain": RetrainStage(min_new=9)}, True),
        ({"train": TrainStage(steps=7)}, False),
        ({"sample": SampleStage(num=7)}, False),
        ({"sample": SampleStage(labels=("1",))}, False),
        ({"sample": SampleStage(reference_images=7)}, False),
        ({"retrain": RetrainStage(measure="dataset")}, False),
        ({"retrain": RetrainStage(min_distance_ratio=0.1)}, False),
    ],
)
def test_a_decision_is_known_by_what_affects_it(changed, same, tmp_path):
    tracker = Tracker(Environment(storage=str(tmp_path)))
    key = retrain.retrain_key(CONFIG, tracker, shards(10), champion())

    assert (retrain.retrain_key(replace(CONFIG, **changed), tracker, shards(10), champion()) == key) is same
    assert retrain.retrain_key(CONFIG, tracker, shards(10, "other"), champion()) != key
    assert retrain.retrain_key(CONFIG, tracker, shards(10), None) != key


def test_two_retrainings_on_a_cluster_have_a_config_each_whoever_is_sent_first(tmp_path):
    environment = Environment(storage=str(tmp_path), tracking_uri="http://mlflow:5000")
    configs = [replace(CONFIG, train=TrainStage(steps=steps)) for steps in (7, 8, 7)]
    requests = [retrain.request_of(config, environment, "retrain-x", "/here") for config in configs]

    for config, request in zip(configs, requests, strict=True):
        ((uri, told),) = request.files.items()
        (tmp_path / "config.json").write_bytes(told)

        assert uri in request.argv
        assert re.fullmatch("retrain-x-[0-9a-f]{16}.json", Path(uri).name)
        assert read_config(str(tmp_path / "config.json")) == config
    assert requests[0] == requests[2]
    assert requests[0].argv != requests[1].argv
    assert {request.key for request in requests} == {"retrain-x"}
    assert not (tmp_path / "configs").exists()


def test_both_are_judged_beside_what_neither_has_seen_and_by_class_where_there_are_classes():
    assert retrain.how_to_judge(CONFIG, shards(10)).features == ("thumbnails",)
    assert retrain.how_to_judge(CONFIG, shards(10)).reference == "train"  # there is nothing held out
    assert retrain.how_to_judge(CONFIG, shards(10, classes="ab")).features == ("dataset", "thumbnails")


@pytest.fixture
def copy(whole, storage, tmp_path):
    """A storage of its own that a whole run left, with version 1 as the champion and a version 2 like it."""
    moved(storage, tmp_path / "runs")
    environment = Environment(storage=str(tmp_path / "runs"))
    tracker = Tracker(environment)
    first = model_version(tracker, "smoke/1")
    tracker.client.create_model_version("smoke", f"models:/{first.model_id}", run_id=first.run_id, tags=first.tags)
    return environment


def runs(environment):
    """Those of retrain, oldest first."""
    client = MlflowClient(environment.mlflow_uri, environment.mlflow_uri)
    experiment = client.get_experiment_by_name("smoke").experiment_id
    return client.search_runs([experiment], "tags.`ddpm.stage` = 'retrain'", order_by=["start_time ASC"])


def killed(environment, whole, promoted=True, champion="models:/smoke/1"):
    """A run that decided on version 2, and was killed."""
    reasons = ["it is better"] if promoted else ["it is worse"]
    decision = {
        "promoted": promoted, "reasons": reasons, "candidate": "models:/smoke/2", "champion": champion,
        "samples": whole["sample_run"],
    }  # fmt: skip
    tags = {retrain.DECISION_TAG: json.dumps(decision), "ddpm.dataset_digest": whole["digest"]}
    return Tracker(environment).start("smoke", "retrain", "0" * 16, tags, {})


@pytest.mark.ray
def test_the_same_data_is_skipped_in_a_run_of_its_own_without_ray(ddpm, copy):
    done = ddpm("retrain", "--name", "smoke", "--storage", copy.storage, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    (run,) = runs(copy)

    assert (result["outcome"], result["run"]) == ("skipped", run.info.run_id)
    assert result["reasons"] == ["the data is what version 1, the champion, was trained on"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["ddpm.outcome"] == "skipped"
    assert json.loads(run.data.tags["ddpm.reasons"]) == result["reasons"]
    assert "starting Ray" not in done.stderr


@pytest.mark.ray
def test_of_two_at_once_one_says_so_and_that_is_no_failure(ddpm, copy):
    with locked(copy, "retrain-smoke"):
        done = ddpm("retrain", "smoke", "--storage", copy.storage, "--json")

    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "busy"
    assert "retrain-smoke is being worked on by process" in done.stderr
    assert runs(copy) == []


@pytest.mark.ray
def test_what_was_decided_before_a_kill_is_finished_and_then_the_data_is_the_champions(copy, whole):
    run_id = killed(copy, whole)
    finished = retrain.run(preset("smoke"), copy)
    after = retrain.run(preset("smoke"), copy)
    run = Tracker(copy).run(run_id)
    told = promotion.history(Tracker(copy), "smoke")

    assert (finished.outcome, finished.run, finished.reasons) == ("promoted", run_id, ["it is better"])
    assert (run.status, run.tags["ddpm.outcome"]) == ("FINISHED", "promoted")
    assert [(event.version, event.by) for event in told] == [("1", "run"), ("2", f"retrain {run_id}")]
    assert after.outcome == "skipped"
    assert after.champion == "models:/smoke/2"


@pytest.mark.ray
def test_a_refusal_before_a_kill_stays_one_and_leaves_its_report(copy, whole):
    run_id = killed(copy, whole, promoted=False)
    finished = retrain.run(preset("smoke"), copy)
    page = Path(finished.report).read_text()

    assert (finished.outcome, finished.reasons) == ("refused", ["it is worse"])
    assert champion_of(Tracker(copy), "smoke").version == "1"
    assert "report.html" in Tracker(copy).artifact_names(run_id)
    assert whole["sample_run"] in page


@pytest.mark.ray
def test_a_champion_that_changed_between_decision_and_promotion_stays(copy, whole):
    killed(copy, whole, champion="models:/smoke/7")
    finished = retrain.run(preset("smoke"), copy)

    assert finished.outcome == "refused"
    assert "was version 7 when this was decided, and is version 1 now" in finished.reasons[0]
    assert champion_of(Tracker(copy), "smoke").version == "1"


@pytest.mark.ray
def test_a_promotion_that_was_rolled_back_before_its_run_was_finished_is_not_repeated(copy, whole):
    run_id, tracker = killed(copy, whole), Tracker(copy)
    decision = retrain.Decision(True, ("it is better",))
    promotion.carry_out(tracker, model_version(tracker, "smoke/2"), "1", decision, f"retrain {run_id}")
    promotion.rollback(tracker, "smoke", "blurred")
    finished = retrain.run(preset("smoke"), copy)

    assert (finished.run, tracker.run(run_id).status) == (run_id, "FINISHED")
    assert champion_of(tracker, "smoke").version == "1"


@pytest.mark.ray
def test_a_candidate_that_was_deleted_meanwhile_is_refused(copy, whole):
    killed(copy, whole)
    Tracker(copy).client.delete_model_version("smoke", "2")

    assert retrain.run(preset("smoke"), copy).reasons == ["models:/smoke/2 was deleted meanwhile"]


@pytest.mark.ray
def test_without_a_preset_the_settings_are_those_of_the_champion_but_what_flags_name(copy):
    saved = saved_config(copy, "smoke")
    _, args = understood(["retrain", "--name", "smoke", "--train.steps", "600", "--min-new=7", "--train.no-flip"])
    told = with_named(replace(saved, train=replace(saved.train, flip=True)), args.config, args.named)

    assert not args.chosen
    assert (saved.train, saved.model, saved.diffusion) == tuple(
        getattr(preset("smoke"), stage) for stage in ("train", "model", "diffusion")
    )
    assert saved.shard.values == preset("smoke").shard.values
    assert (told.train.steps, told.retrain.min_new, told.train.flip) == (600, 7, False)
    assert told == replace(saved, train=replace(saved.train, steps=600), retrain=replace(saved.retrain, min_new=7))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ModelConfig(base_channels=32)}, "init_from must be a model of this very network, got .*smoke/1: "),
        ({"diffusion": DiffusionConfig(prediction="v")}, "init_from must be a model that predicts v; .* predicts eps"),
    ],
)
def test_weights_of_another_network_are_no_beginning(whole, storage, changed, message):
    config, data = replace(preset("smoke"), **changed), open_shard_set(Folder(whole["data"]))
    with pytest.raises(ValueError, match=message):
        train.start_weights(model_version(Tracker(Environment(storage=str(storage))), "smoke/1"), config, data)


@pytest.fixture
def foreign(copy):
    """A version that somebody else registered, and made champion."""
    client = Tracker(copy).client
    made = client.create_model_version("smoke", "/nowhere")
    client.set_registered_model_alias("smoke", "champion", made.version)
    return find_version(Tracker(copy), "smoke", made.version)


@pytest.mark.ray
def test_beside_a_champion_that_somebody_else_registered_a_run_leaves_its_model_a_candidate(copy, foreign):
    stages = Stages(preset("smoke"), copy)
    model = model_version(Tracker(copy), "smoke/1")
    decision = crown(stages, model, stages.samples(model))

    assert not decision.promoted
    assert "models:/smoke/3 was registered by something else" in decision.why
    assert champion_of(Tracker(copy), "smoke") == foreign


@pytest.mark.ray
@pytest.mark.parametrize("words", [["retrain", "smoke"], ["retrain", "--name=smoke"], ["promote", "smoke/3"]])
def test_what_takes_a_model_of_ours_refuses_another_in_one_line(copy, foreign, words):
    code, error = judged([*words, "--storage", copy.storage])

    assert code == WRONG_CALL
    assert "must be a version that ddpm made: models:/smoke/3 was registered by something else" in error
    assert "\n" not in error


@pytest.mark.ray
def test_promote_rollback_and_champions_are_commands(copy, capsys):
    def act(*words):
        command, args = understood([*words, "--storage", copy.storage])
        return command.act(args)

    promoted, back = act("promote", "smoke/2", "--why", "sharper"), act("rollback", "smoke")
    asked = act("champions", "smoke")

    assert promoted["champion"] == "models:/smoke/2"
    assert promoted["history"][-1]["why"] == "sharper"
    assert asked == back
    assert asked["champion"] == "models:/smoke/1"
    assert [(event["version"], event["by"]) for event in asked["history"]] == [
        ("1", "run"), ("2", "promote"), ("1", "rollback"),
    ]  # fmt: skip
    assert "smoke/2  promote   sharper" in capsys.readouterr().err
