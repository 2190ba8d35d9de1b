"""`ddpm gc`: what no alias and no recent run can reach is found and taken, and nothing else."""

import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from faulty_store import open_faulty_store
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from moved_storage import moved

from diffusion.files import Folder
from workflows import gc
from workflows.champions import promotion
from workflows.reachable import Thing, unreachable
from workflows.storage import Environment, locked
from workflows.tracking import Tracker, model_version, stored_runs

NAMES = st.sampled_from("abcdefgh")
SETS = st.frozensets(NAMES, max_size=3)
THINGS = st.lists(
    st.builds(Thing, id=NAMES, kind=st.just("data"), names=SETS, leads_to=SETS), unique_by=lambda thing: thing.id
)


def ids(things):
    return {thing.id for thing in things}


@given(THINGS, SETS)
def test_what_a_root_leads_to_is_never_garbage(things, roots):
    garbage = ids(unreachable(things, roots))
    kept = [thing for thing in things if thing.id not in garbage]
    needed = roots.union(*(thing.leads_to for thing in kept))

    assert not [thing for thing in things if thing.id in garbage and needed & {thing.id, *thing.names}]


@given(THINGS, SETS, SETS)
def test_more_roots_never_make_more_garbage(things, roots, more):
    assert ids(unreachable(things, roots | more)) <= ids(unreachable(things, roots))


@given(THINGS, SETS)
def test_what_is_kept_is_kept_because_of_a_root(things, roots):
    assert unreachable(things, ()) == things
    if not roots & {name for thing in things for name in (thing.id, *thing.names)}:
        assert unreachable(things, roots) == things


@given(THINGS.flatmap(lambda things: st.tuples(st.just(things), st.permutations(things))), SETS)
def test_the_order_of_the_things_decides_nothing(orders, roots):
    things, others = orders

    assert ids(unreachable(things, roots)) == ids(unreachable(others, roots))


LONG_AGO_S = 90 * gc.DAY_S


@pytest.fixture
def copy(whole, storage, tmp_path):
    """A storage of its own that a whole run left 90 days ago, with a champion; and MLflow's client for it."""
    moved(storage, tmp_path / "runs", ago_s=LONG_AGO_S)
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    return Environment(storage=str(tmp_path / "runs")), MlflowClient(uri, uri)


def collect(environment, keep_days=30, delete=False):
    return gc.run(environment, keep_days, delete, lambda line: None)


def found(findings):
    return {finding.thing.id for finding in findings}


def run_of(client, stage):
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "smoke"]
    (run,) = client.search_runs([experiment], f"tags.`ddpm.stage` = '{stage}' AND attributes.status = 'FINISHED'")
    return run


def forget(client, *aliases):
    for alias in aliases:
        client.delete_registered_model_alias("smoke", alias)


def files(environment):
    return {path for path in Path(environment.storage).rglob("*") if path.is_file() and path.suffix != ".lock"}


def tree(environment, *names):
    return {path for path in files(environment) if path.relative_to(environment.storage).parts[0] in names}


@pytest.mark.ray
def test_a_champion_keeps_its_training_its_checkpoints_and_its_data(copy):
    environment, client = copy
    forget(client, "candidate")
    data = tree(environment, "data", "train")
    collected = collect(environment, delete=True)
    sample, train = run_of_all(environment, "sample"), run_of(client, "train")

    assert f"samples/{sample.tracked.key}" in found(collected.garbage)
    assert f"runs:/{sample.tracked.run_id}" in found(collected.garbage)
    assert sample.is_deleted
    assert not tree(environment, "samples")
    assert tree(environment, "data", "train") == data
    assert client.get_model_version_by_alias("smoke", "champion").run_id == train.info.run_id
    assert train.info.lifecycle_stage == "active"
    assert run_of(client, "shard").info.lifecycle_stage == "active"


def run_of_all(environment, stage):
    """The run of a stage, deleted or not."""
    (run,) = [run for run in stored_runs(Tracker(environment)) if run.tracked.tags["ddpm.stage"] == stage]
    return run


@pytest.mark.ray
def test_the_champion_before_is_kept_for_a_rollback_and_the_one_before_that_is_not(copy):
    environment, client = copy
    tracker, first = Tracker(environment), model_version(Tracker(environment), "smoke/1")
    for key in ("a" * 16, "b" * 16):
        run_id = tracker.start("smoke", "train", key, {}, {})
        client.set_terminated(run_id)
        made = client.create_model_version("smoke", "/nowhere", run_id=run_id, tags=first.tags)
        promotion.promote(tracker, model_version(tracker, f"smoke/{made.version}"), "by hand")
    forget(client, "candidate")
    garbage = found(collect(environment, keep_days=0, delete=True).garbage)

    assert garbage & {f"models:/smoke/{number}" for number in "123"} == {"models:/smoke/1"}
    assert promotion.rollback(tracker, "smoke", "").version == "2"


@pytest.mark.ray
def test_without_an_alias_all_that_is_old_is_garbage_and_only_listed_unless_told(copy):
    environment, client = copy
    forget(client, "candidate", "champion")
    before = files(environment)
    places = ("data", "train", "samples", "features", "configs", "mlflow-artifacts")
    num_bytes = sum(path.stat().st_size for path in tree(environment, *places))
    listed = collect(environment)
    untouched = files(environment)
    deleted = collect(environment, delete=True)

    assert untouched == before
    assert {"data/smoke", "models:/smoke/1"} <= found(listed.garbage)
    assert listed.num_bytes == num_bytes
    assert found(deleted.garbage) == found(listed.garbage)
    assert not tree(environment, *places)
    assert not client.search_model_versions("name = 'smoke'")
    assert collect(environment).garbage == []


@pytest.mark.ray
def test_a_recent_run_keeps_the_model_that_it_drew_from_and_all_that_led_to_it(copy):
    environment, client = copy
    forget(client, "candidate", "champion")
    with sqlite3.connect(f"{environment.storage}/mlflow.db") as database:
        now = int(time.time() * 1000)
        database.execute("UPDATE runs SET end_time = ? WHERE run_uuid = ?", (now, run_of(client, "sample").info.run_id))
    database.close()

    assert collect(environment).garbage == []
    assert "data/smoke" in found(collect(environment, keep_days=0).garbage)


@pytest.mark.ray
def test_what_is_running_or_locked_is_left(copy):
    environment, client = copy
    forget(client, "candidate", "champion")
    with locked(environment, "shard-smoke"):
        held = collect(environment, delete=True)
    client.update_run(run_of_all(environment, "shard").tracked.run_id, status="RUNNING")
    running = collect(environment, delete=True)

    assert not {"data/smoke"} & (found(held.garbage) | found(running.garbage))
    assert tree(environment, "data")


@pytest.mark.ray
def test_a_champion_keeps_its_data_when_that_was_added_to_and_the_storage_lies_elsewhere_by_now(
    whole, storage, tmp_path
):
    moved(storage, tmp_path / "runs", uri="/mnt/before/runs", ago_s=LONG_AGO_S)
    environment = Environment(storage=str(tmp_path / "runs"))
    description = tmp_path / "runs/data/smoke/dataset.json"
    grown = {**json.loads(description.read_text()), "digest": "f" * 32}
    description.write_text(json.dumps(grown))
    tracker = Tracker(environment)
    tags = {"ddpm.dataset_digest": grown["digest"], "ddpm.dataset_uri": "/mnt/before/runs/data/smoke"}
    tracker.client.set_terminated(tracker.start("smoke", "shard", "added", tags, {}))
    collected = collect(environment, keep_days=0)

    assert "data/smoke" not in found(collected.garbage)


@pytest.mark.ray
def test_the_configs_of_retrainings_that_are_long_over_are_garbage_and_those_of_nobody_are_left(copy):
    environment, client = copy
    tracker = Tracker(environment)
    client.set_terminated(tracker.start("smoke", "retrain", "a" * 16, {}, {}))
    for name in ("smoke", "others"):
        (environment.folder / "configs").write(f"retrain-{name}-{'b' * 16}.json", b"{}")
    kept, collected = collect(environment), collect(environment, keep_days=0)

    assert f"configs/retrain-smoke-{'b' * 16}.json" in found(collected.garbage) - found(kept.garbage)
    assert f"configs/retrain-others-{'b' * 16}.json" in found(collected.untracked)


@pytest.mark.ray
def test_what_no_run_made_is_named_and_left(copy):
    environment, client = copy
    forget(client, "candidate", "champion")
    place = Path(environment.storage)
    shutil.copytree(place / "data/smoke", place / "data/adopted")
    description = json.loads((place / "data/adopted/dataset.json").read_text())
    (place / "data/adopted/dataset.json").write_text(json.dumps({**description, "digest": "0" * 32}))
    (place / "data/link").symlink_to(place / "data/adopted")
    (place / "features/net" / ("0" * 32)).mkdir(parents=True)
    (place / "features/net" / description["digest"]).mkdir()
    collected = collect(environment, delete=True)

    assert found(collected.untracked) == {"data/adopted", "data/link", f"features/net/{'0' * 32}"}
    assert f"features/net/{description['digest']}" in found(collected.garbage)
    assert (place / "data/adopted/dataset.json").exists()
    assert (place / "data/link").is_symlink()


@pytest.mark.ray
def test_an_alias_that_is_given_while_it_deletes_keeps_the_model_and_its_data(copy):
    environment, client = copy
    forget(client, "candidate", "champion")

    def give_one(line):
        if not client.get_registered_model("smoke").aliases:
            client.set_registered_model_alias("smoke", "wanted", "1")

    collected = gc.run(environment, 30, True, give_one)

    assert {"data/smoke", "models:/smoke/1", f"runs:/{run_of(client, 'train').info.run_id}"} <= found(collected.kept)
    assert tree(environment, "data", "train")
    assert client.get_model_version_by_alias("smoke", "wanted").status == "READY"


def test_what_says_that_a_set_is_whole_goes_first(tmp_path, monkeypatch):
    folder, gone = Folder(tmp_path), []
    for name in ("a.tar", "dataset.json", "z.tar"):
        folder.write(f"data/x/{name}", b"")
    monkeypatch.setattr(Folder, "delete", lambda self, name: gone.append(name))
    gc.remove(folder, "data/x")

    assert gone == ["data/x/dataset.json", "data/x"]


@pytest.mark.ray
def test_in_an_object_store_it_is_the_same(whole, storage, tmp_path, monkeypatch):
    with open_faulty_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.client.create_bucket(Bucket="garbage")
        moved(storage, tmp_path / "runs", "s3://garbage/runs", LONG_AGO_S)
        bucket = Folder("s3://garbage/runs")
        for path in files(Environment(storage=str(tmp_path / "runs"))):
            if path.name != "mlflow.db":
                bucket.write(str(path.relative_to(tmp_path / "runs")), path.read_bytes())
        uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
        environment = Environment(storage="s3://garbage/runs", tracking_uri=uri)
        local = collect(Environment(storage=str(tmp_path / "runs"), tracking_uri=uri))
        kept = collect(environment, delete=True)
        forget(MlflowClient(uri, uri), "candidate", "champion")
        calls = store.buckets["garbage"]
        calls.forget()
        listed = collect(environment)
        num_heads = sum(call.name.startswith("HEAD") for call in calls.calls)
        deleted = collect(environment, delete=True)
        left = [info.path for info in bucket.files()]

    assert {(f.thing.id, f.thing.num_bytes) for f in kept.garbage if f.thing.kind == "samples"} == {
        (f.thing.id, f.thing.num_bytes) for f in local.garbage if f.thing.kind == "samples"
    }
    assert "data/smoke" in found(deleted.garbage)
    assert found(deleted.garbage) == found(listed.garbage)
    assert num_heads < 5 * len(listed.garbage)
    assert [path for path in left if "/locks/" not in path] == []


def test_days_below_zero_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_days must be at least 0, got -1"):
        collect(Environment(storage=str(tmp_path)), keep_days=-1)


def test_a_storage_of_which_nothing_is_known_is_refused_and_left(tmp_path):
    Folder(tmp_path).write("data/x/dataset.json", b"{}")

    with pytest.raises(ValueError, match="nothing has been tracked"):
        collect(Environment(storage=str(tmp_path)), delete=True)
    assert (tmp_path / "data/x/dataset.json").exists()


@pytest.mark.ray
def test_the_command_prints_a_table_and_one_object(ddpm, copy):
    environment, client = copy
    forget(client, "candidate")
    done = ddpm("gc", "--storage", environment.storage, "--json")
    result = json.loads(done.stdout)
    (samples,) = [row for row in result["garbage"] if row["kind"] == "samples"]

    assert samples["num_bytes"] > 0
    assert samples["id"] in done.stderr
    assert result["num_bytes"] == sum(row["num_bytes"] for row in result["garbage"])
    assert f"{result['num_bytes']:,} bytes" in done.stderr
    assert "nothing was deleted" in done.stderr
