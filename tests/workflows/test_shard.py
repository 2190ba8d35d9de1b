"""`ddpm shard` on a real Ray: what it makes does not depend on how many workers make it, or on what befalls them."""

import json

import numpy as np
import pytest
from PIL import Image

from workflows.cli import main

pytestmark = pytest.mark.ray

NUM_PICTURES = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes of pictures, and inputs that are none."""
    folder = tmp_path_factory.mktemp("source")
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, 8, 8, 3), dtype=np.uint8)
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        (folder / label / "empty.png").touch()
        (folder / label / "notes.txt").write_text("no picture, and does not say so")
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / ("cat" if index % 3 else "dog") / f"{index:04d}.png")
    return folder


@pytest.fixture
def shard(source, cluster, tmp_path, capsys):
    """`ddpm shard` of the source on the session's Ray, with these words more; exit code, stdout and the last line."""

    def call(*words):
        flags = ["--image-size=8", "--samples-per-shard=64", "--val-fraction=0.2", "--name=set", "--json"]
        where = [f"--storage={tmp_path}/storage", f"--address={cluster.address}", f"--source={source}"]
        with pytest.raises(SystemExit) as ended:
            main(["shard", *where, *flags, *map(str, words)])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err.replace("\r", "\n").splitlines()[-1]

    return call


def digest_in(out):
    return json.loads(out.splitlines()[-1])["digest"]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_any_number_of_workers_makes_the_same_bytes(shard, tmp_path):
    digests, sets = set(), []
    for num_workers, cpus in ((1, 1), (2, 1), (4, 0.5)):
        folder = tmp_path / f"by-{num_workers}"
        code, out, said = shard("--out", folder, f"--num-workers={num_workers}", f"--cpus-per-worker={cpus}")

        assert code == 0, said
        digests.add(digest_in(out))
        sets.append({name: data for name, data in files_of(folder).items() if name != "config.json"})

    assert len(digests) == 1
    assert sum(name.endswith(".tar") for name in sets[0]) > 8
    assert sets[0] == sets[1] == sets[2]


def test_dataset_json_is_written_last(shard, tmp_path):
    shard("--out", tmp_path / "set")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*") if path.is_file()}

    assert "config.json" in written
    assert max(written, key=written.__getitem__) == "dataset.json"


def tars_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_a_full_disk_ends_the_command_with_one_line_and_with_room_it_makes_the_same_set(shard, disk, tmp_path):
    place, limit = disk
    limit("size=100k")
    whole = shard("--out", tmp_path / "elsewhere")
    code, _, said = shard("--out", place / "set")
    left, tars = files_of(place / "set"), tars_in(tmp_path / "elsewhere")

    assert code == 1
    assert said.startswith("ddpm: error: ")
    assert f"No space left on device: '{place}/set" in said
    assert "dataset.json" not in left
    assert not [name for name in left if name.endswith(".tmp")]
    assert all(data == tars[name] for name, data in tars_in(place / "set").items())

    limit("size=64m")
    code, out, said = shard("--out", place / "set")

    assert code == 0, said
    assert digest_in(out) == digest_in(whole[1])
    assert tars_in(place / "set") == tars


def test_what_is_tried_again_is_not_told_in_stdout(shard, disk):
    place, limit = disk
    limit("size=100k")
    _, out, _ = shard("--out", place / "set")

    assert out == ""


def test_too_many_bad_inputs_end_the_command_with_one_line_that_counts_them(shard, tmp_path):
    code, out, said = shard("--max-reject-fraction=0")

    assert (code, out) == (1, "")
    assert said.startswith(f"ddpm: error: 2 of {NUM_PICTURES + 2} images were refused (")
    assert not (tmp_path / "storage/data/set/dataset.json").exists()


def runs_of_sets(tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/storage/mlflow.db")
    experiment = client.get_experiment_by_name("set")
    return client.search_runs([experiment.experiment_id], order_by=["start_time"])


def test_a_set_whose_command_ends_before_mlflow_knows_of_it_is_told_by_the_next_one_and_only_once(
    shard, tmp_path, monkeypatch
):
    def end(shards):
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr("workflows.track_shards.contact_sheet", end)
        code, _, said = shard()
    whole = (tmp_path / "storage/data/set/dataset.json").read_bytes()

    assert (code, said) == (1, "ddpm: error: the power went")
    assert [shard()[0] for _ in range(2)] == [0, 0]
    assert (tmp_path / "storage/data/set/dataset.json").read_bytes() == whole

    failed, told = runs_of_sets(tmp_path)

    assert (failed.info.status, told.info.status) == ("FAILED", "FINISHED")
    assert told.data.metrics["num_train"] + told.data.metrics["num_val"] == NUM_PICTURES
    assert "images_per_s" not in told.data.metrics
