"""An MLflow that cannot answer: nobody takes that for "there is none", and nothing else is hidden by it."""

import sqlite3
from contextlib import closing, contextmanager

import pytest

from workflows.champions.gate import Decision
from workflows.champions.promotion import carry_out, history
from workflows.cli import judged
from workflows.storage import Environment, JobFailed
from workflows.tracking import DIGEST_TAG, OUTCOME_TAG, Tracker, champion_of, find_version, model_version

YES = Decision(True, ("it is better",))


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """Where the MLflow is, and the champion of the two versions of a model there."""
    environment = Environment(storage=str(tmp_path_factory.mktemp("registry")))
    client = Tracker(environment).client
    client.create_registered_model("pets")
    for _ in range(2):
        client.create_model_version("pets", "/nowhere", tags={DIGEST_TAG: "0" * 32})
    first = model_version(Tracker(environment), "pets/1")
    carry_out(Tracker(environment), first, "", YES, "run")
    return environment, first


@contextmanager
def without(environment, *tables):
    """The database has lost these tables, until the block ends."""

    def rename(old, new):
        with closing(sqlite3.connect(environment.mlflow_uri.removeprefix("sqlite:///"))) as database:
            database.execute(f"ALTER TABLE {old} RENAME TO {new}")

    for table in tables:
        rename(table, f"lost_{table}")
    try:
        yield
    finally:
        for table in tables:
            rename(f"lost_{table}", table)


def test_what_is_not_there_is_none_and_what_cannot_be_told_is_a_failure(champion):
    environment, first = champion
    tracker = Tracker(environment)

    assert champion_of(tracker, "pets").version == first.version
    assert find_version(tracker, "pets", "7") is None
    assert champion_of(tracker, "cats") is None
    assert not tracker.has_run("0" * 32)

    questions = (
        lambda: champion_of(tracker, "pets"),
        lambda: find_version(tracker, "pets", "1"),
        lambda: model_version(tracker, "pets@champion"),
        lambda: tracker.has_run("0" * 32),
    )
    with without(environment, "registered_model_aliases", "model_versions", "runs"):
        for ask in questions:
            with pytest.raises(JobFailed, match="MLflow did not answer"):
                ask()


def test_no_champion_is_crowned_over_one_that_cannot_be_seen(champion):
    environment, first = champion
    tracker = Tracker(environment)
    second = model_version(tracker, "pets/2")
    with without(environment, "registered_model_aliases"), pytest.raises(JobFailed, match="MLflow did not answer"):
        carry_out(tracker, second, "", YES, "run")
    second = model_version(tracker, "pets/2")

    assert champion_of(tracker, "pets").version == first.version
    assert OUTCOME_TAG not in second.tags
    assert [event.version for event in history(tracker, "pets")] == ["1"]


def test_what_went_wrong_is_raised_even_if_mlflow_cannot_be_told(champion):
    environment, _ = champion
    tracker = Tracker(environment)
    run_id = tracker.start("pets", "train", "key", {}, {})
    with without(environment, "runs"), pytest.raises(FloatingPointError, match="loss is nan"), tracker.ending(run_id):
        raise FloatingPointError("loss is nan")
    again = tracker.start("pets", "train", "key", {}, {})

    assert tracker.run(run_id).status == "KILLED"
    assert tracker.run(again).status == "RUNNING"


@pytest.mark.parametrize("words", [("champions", "pets"), ("lineage", "a" * 32), ("gc",)])
def test_a_command_says_in_one_line_that_the_registry_fails(champion, words):
    environment, _ = champion
    with without(environment, "registered_model_aliases", "registered_models", "runs"):
        code, error = judged([*words, "--storage", environment.storage])

    assert code == 1
    assert "no such table" in error.splitlines()[0]
