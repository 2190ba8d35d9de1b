import json
import shutil

import numpy as np
import pytest
import webdataset

from diffusion.data.adopt import adopt_tar, first_kind, list_tars
from diffusion.data.images import encode
from diffusion.data.loader import SampleReader
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from workflows.config import Workers
from workflows.index import run
from workflows.storage import Environment, JobFailed

pytestmark = pytest.mark.ray


def pixels_of(number, side=8):
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def foreign(tmp_path):
    """Sixty pictures as stock webdataset's ShardWriter writes them, twelve a tar."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    with webdataset.ShardWriter(f"file:{folder}/train-%03d.tar", maxcount=12, verbose=0) as writer:
        for number in range(60):
            writer.write({"__key__": f"{number:05d}", "png": pixels_of(number), "cls": number % 3, "txt": "a caption"})
    return folder


@pytest.fixture
def begin(cluster, tmp_path):
    """The job in this process, of a folder and a number of workers."""

    def call(folder, num_workers):
        environment = Environment(storage=str(tmp_path / "runs"), address=cluster.address)
        return run(environment, Folder(folder), Workers(num_workers=num_workers))

    return call


@pytest.fixture
def index(ddpm, cluster):
    def call(*words, **options):
        return ddpm("index", *map(str, words), "--address", cluster.address, **options)

    return call


def test_tars_of_stock_webdataset_become_a_set_that_verifies_and_is_read(index, ddpm, cluster, foreign):
    done = index(foreign, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    ddpm("verify", str(foreign), "--deep", "--address", cluster.address)
    shards = open_shard_set(Folder(foreign))
    images, labels = SampleReader(shards).read(range(60))

    assert result["counts"] == {"train": 60, "val": 0}
    assert (result["digest"], result["num_shards"]) == (shards.digest, 5)
    assert np.array_equal(images.transpose(0, 2, 3, 1), [pixels_of(number) for number in range(60)])
    assert labels.tolist() == [number % 3 for number in range(60)]


def test_a_second_index_does_nothing_and_one_after_a_kill_goes_on(begin, foreign, capfd):
    folder = Folder(foreign)
    tars = list_tars(folder)
    adopt_tar(folder, tars[3], first_kind(folder, tars))
    resumed = begin(foreign, 1)
    again = begin(foreign, 3)
    said = capfd.readouterr().err

    assert "index: going on after 1 of 5 tars" in said
    assert f"index: reused {foreign}" in said
    assert again.digest == resumed.digest


def test_the_manifest_is_the_same_for_any_number_of_workers(begin, foreign, tmp_path):
    shutil.copytree(foreign, tmp_path / "copy", copy_function=shutil.copy2)
    one, three = begin(foreign, 1), begin(tmp_path / "copy", 3)

    assert one.parts == three.parts
    assert (foreign / "dataset.json").read_bytes() == (tmp_path / "copy/dataset.json").read_bytes()


def test_the_first_tar_that_cannot_be_adopted_is_named_for_any_number_of_workers(begin, foreign):
    for name in ("train-001.tar", "train-003.tar"):
        data = (foreign / name).read_bytes()
        (foreign / name).write_bytes(data[: len(data) // 2])
    for number in (1, 2, 5):
        with pytest.raises(JobFailed, match=f"cannot adopt {foreign}/train-001.tar: tar is cut short"):
            begin(foreign, number)

    assert not (foreign / "dataset.json").exists()


def test_no_more_tars_are_begun_after_one_that_is_refused(begin, foreign):
    (foreign / "train-001.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(JobFailed, match=r"train-001\.tar"):
        begin(foreign, 1)
    begun = {path.name for path in (foreign / "plan").iterdir()}

    assert begun <= {"adopted-000000.json", "adopted-000002.json"}  # the next was on its way


def test_a_set_of_mixed_sizes_is_sent_to_shard(index, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for side in (8, 9):
            writer.write({"__key__": f"side{side}", "png": encode(pixels_of(0, side), "png")})
    done = index(tmp_path, check=False)

    assert done.returncode == 1
    assert "sample side9 is 9x9 in 3 channels" in done.stderr
    assert f"ddpm shard --source {tmp_path}" in done.stderr


def test_without_tars_the_call_was_wrong(index, tmp_path):
    done = index(tmp_path, check=False)

    assert done.returncode == 2
    assert f"there are no tars to index in {tmp_path}" in done.stderr
