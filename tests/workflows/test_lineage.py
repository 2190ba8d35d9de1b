"""From any link of the chain to all that it came of and all that came of it."""

import json

import pytest

from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder

pytestmark = pytest.mark.ray


@pytest.fixture
def lineage(ddpm, whole, storage):
    """Of an id: its tree, as `--json` gives it, and as lines."""

    def call(name):
        done = ddpm("lineage", name, "--storage", str(storage), "--json")
        return json.loads(done.stdout), done.stderr.splitlines()

    return call


def kinds(tree):
    return [tree["kind"], [kinds(child) for child in tree["children"]]]


def test_of_the_data_comes_everything(lineage, whole):
    tree, _ = lineage(whole["digest"])
    train = next(child for child in tree["children"] if child["kind"] == "train")
    drawn = [child["id"] for child in train["children"][0]["children"]]

    assert tree["id"] == whole["digest"]
    assert whole["data"] in tree["detail"]
    assert {"shard", "train"} <= {child["kind"] for child in tree["children"]} <= {"shard", "train", "features"}
    assert [child["id"] for child in train["children"]] == [whole["model"]]
    assert whole["sample_run"] in drawn


@pytest.mark.parametrize("name", ["smoke", "smoke@champion", "smoke/1", "models:/smoke/1"])
def test_a_model_came_of_its_data_and_its_training_and_of_it_came_samples(name, lineage, whole):
    tree, lines = lineage(name)
    _, ((train, ((model, drawn),)),) = kinds(tree)

    assert (tree["kind"], train, model) == ("data", "train", "model")  # and not the run that made the shards
    assert ["sample", []] in drawn
    (asked,) = [line for line in lines if line.endswith("<--")]
    assert asked == f"    model {whole['model']}  @candidate, @champion  <--"


def test_a_sample_run_came_of_one_model_alone(lineage, whole):
    tree, lines = lineage(whole["sample_run"])
    (train,) = tree["children"]
    (model,) = train["children"]
    (sample,) = model["children"]

    assert [node["kind"] for node in (tree, train, model, sample)] == ["data", "train", "model", "sample"]
    assert {child["kind"] for child in sample["children"]} <= {"evaluate"}
    assert any(f"sample {whole['sample_run']}  FINISHED, num 40, seed 0" in line for line in lines)


def test_a_picture_is_traced_to_the_data_by_its_key_with_its_seed_and_its_bytes(lineage, whole):
    shards = open_shard_set(Folder(whole["samples"]))
    row = shards.manifest(shards.tars[-1], ["key", "source", "label", "sha256"]).to_pylist()[-1]
    tree, lines = lineage(f"{whole['sample_run']}/{row['key']}")

    (train,) = tree["children"]
    (sample,) = train["children"][0]["children"]

    assert sample["children"][-1]["kind"] == "picture"
    assert f"label {row['label']}, {row['source']}, sha256 {row['sha256']}" in lines[-1]
    assert "seed=" in lines[-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smoke@nobody", "there is no model smoke@nobody"),
        ("nobody", "there are: smoke"),
        ("0" * 32, "id must be a digest, a run or a model that"),
        ("RUN/nobody", "has no sample 'nobody'; its 40 keys are like 000000-000000"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(name, said, ddpm, whole, storage):
    name = name.replace("RUN", whole["sample_run"])
    done = ddpm("lineage", name, "--storage", str(storage), check=False)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
