import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.files import Folder
from workflows.config import Workers
from workflows.storage import Environment, JobFailed
from workflows.verify import find_set, run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def made(ddpm, cluster, tmp_path_factory):
    """A set of 120 pictures in a storage, under the name `pictures`: (storage, folder)."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "source" / label).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source" / label / f"{number}.png")
    words = ["--source", str(folder / "source"), "--image-size", "8", "--samples-per-shard", "64", "--name", "pictures"]
    ddpm("shard", *words, "--storage", str(folder / "runs"), "--address", cluster.address)
    return folder / "runs", folder / "runs/data/pictures"


@pytest.fixture
def verify(ddpm, cluster):
    def call(*words, **options):
        return ddpm("verify", *map(str, words), "--address", cluster.address, **options)

    return call


def test_a_good_set_is_said_to_be_one(verify, made):
    storage, folder = made
    saved = json.loads((folder / "dataset.json").read_text())
    by_path = verify(folder, "--json", "--deep")
    by_name = verify("pictures", "--storage", storage, "--json", "--num-workers", "1")
    result = json.loads(by_path.stdout.splitlines()[-1])

    assert by_name.stdout == by_path.stdout
    assert result == {
        "uri": str(folder),
        "digest": saved["digest"],
        "num_shards": len(saved["tars"]),
        "counts": saved["counts"],
        "num_bytes": sum(path.stat().st_size for path in folder.glob("*.tar")),
    }
    said = by_path.stderr.splitlines()[-1]
    assert f"({saved['digest']}): {len(saved['tars'])} shards, 120 samples, {result['num_bytes']} bytes" in said


def test_the_first_of_several_differences_is_named_for_any_number_of_workers(cluster, made, tmp_path):
    copy = Path(shutil.copytree(made[1], tmp_path / "copy"))
    first, *_, last = sorted(copy.glob("train-*.tar"))
    last.unlink()
    data = bytearray(first.read_bytes())
    data[3] ^= 1
    first.write_bytes(data)
    environment = Environment(storage=str(made[0]), address=cluster.address)
    said = set()
    for number in (1, 2, 3):
        with pytest.raises(JobFailed) as failed:
            run(environment, Folder(copy), False, Workers(num_workers=number))
        said.add(str(failed.value))

    assert said == {
        f"{first} was changed: tar header at byte 0 is damaged; restore it from a copy, "
        f"or delete the set and make it again (2 shards differ, {len(list(made[1].glob('*.tar')))} were committed)"
    }


def test_a_difference_is_a_failure_of_one_line(verify, made, tmp_path):
    copy = Path(shutil.copytree(made[1], tmp_path / "copy"))
    (copy / "train-000000.tar").unlink()
    done = verify(copy, "--json", check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"ddpm: error: {copy}/train-000000.tar is missing; restore it")


def test_an_edited_dataset_json_ends_it_before_any_shard(made, tmp_path):
    copy = Path(shutil.copytree(made[1], tmp_path / "copy"))
    text = (copy / "dataset.json").read_text()
    (copy / "dataset.json").write_text(text.replace('"cat"', '"cow"'))

    with pytest.raises(JobFailed, match=rf"{copy}/dataset.json was edited.*no shard was looked at"):
        run(Environment(storage=str(made[0]), address="127.0.0.1:1"), Folder(copy), False, Workers())


def test_where_there_is_no_set_the_call_was_wrong(verify, tmp_path):
    done = verify(tmp_path / "nowhere", check=False)

    assert done.returncode == 2
    assert f"no finished shard set at {tmp_path}/nowhere" in done.stderr


def test_a_path_goes_before_a_name(made, tmp_path, monkeypatch):
    storage, folder = made
    environment = Environment(storage=str(storage))
    monkeypatch.chdir(tmp_path)
    by_name = find_set(environment, "pictures")
    shutil.copytree(folder, tmp_path / "pictures")
    by_path = find_set(environment, "pictures")

    assert by_name.uri == str(folder)
    assert by_path.uri == str(tmp_path / "pictures")
    assert find_set(environment, str(folder)).uri == str(folder)
