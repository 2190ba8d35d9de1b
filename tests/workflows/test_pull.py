"""Pulling through a real MLflow server, whose connections break, and out of a store that was tampered with."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from faulty_store import Call, Fault, open_proxy
from mlflow_servers import TrackingServer
from PIL import Image
from small_training import network
from waiting import wait_for

from diffusion.checkpoint import Model, load_model
from diffusion.data.images import encode_png
from diffusion.data.shard_set import Header, commit, open_shard_set
from diffusion.data.shards import Sample, write_shard
from diffusion.data.verify import check_listing, check_shard, claims
from diffusion.files import Folder
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.sampling import SamplerConfig
from workflows import storage
from workflows.cli import main
from workflows.pull import pull_model_to, pull_samples_to
from workflows.storage import Environment, JobFailed, file_lock
from workflows.tracking import DIGEST_TAG, URI_TAG, Tracker, artifacts, pull_model
from workflows.train import register

NUM_SHARDS, PER_SHARD, SIDE = 3, 4, 8
CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    server.folder = Path(server.command[-1].partition("=")[2])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy(server):
    with open_proxy(server.uri.removeprefix("http://")) as proxy:
        yield proxy


@pytest.fixture
def calls(proxy):
    """What is asked of the server, and what is wrong with it: nothing yet."""
    proxy.buckets["api"].forget()
    yield proxy.buckets["api"]
    proxy.buckets["api"].forget()


@pytest.fixture(scope="module")
def where(proxy, tmp_path_factory):
    return Environment(storage=str(tmp_path_factory.mktemp("runs")), tracking_uri=f"http://{proxy.endpoint}")


@pytest.fixture(scope="module")
def tracker(where):
    return Tracker(where)


@pytest.fixture(scope="module")
def version(tracker):
    """A model, registered as by a training."""
    sampler = asdict(SamplerConfig(steps=2))
    model = Model(network(len(CLASSES)).eval(), Diffusion(DiffusionConfig()), CLASSES, 2, sampler)
    run_id = tracker.start("pets", "train", "key-of-training", {}, {})
    with tracker.ending(run_id):
        return register(tracker, run_id, "pets", model, {DIGEST_TAG: "0" * 32, URI_TAG: "nowhere"})


@pytest.fixture(scope="module")
def pictures():
    shape = (NUM_SHARDS * PER_SHARD, SIDE, SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def sample_run(tracker, pictures, tmp_path_factory):
    """A run with these pictures, a shard set whose labels take turns."""
    out = Folder(tmp_path_factory.mktemp("samples"))
    reports = []
    for shard in range(NUM_SHARDS):
        images = [encode_png(picture) for picture in pictures[shard * PER_SHARD : (shard + 1) * PER_SHARD]]
        sha256s = [hashlib.sha256(image).hexdigest() for image in images]
        samples = [
            Sample(index=i, split="train", image=image, label=i % 2, side=SIDE, source="drawn", source_sha256=sha256)
            for i, (image, sha256) in enumerate(zip(images, sha256s, strict=True))
        ]
        reports.append(write_shard(shard, samples, [], out))
    told = {"image_size": SIDE, "channels": 3, "classes": CLASSES, "config": {}}
    commit(Header(**told, config_fingerprint="", source_fingerprint=""), reports, out)
    run_id = tracker.start("pets", "sample", "key-of-samples", {}, {})
    with tracker.ending(run_id):
        tracker.log_folder(run_id, Path(out.path), "samples")
    return run_id


@pytest.fixture
def logged_model(server, version):
    """The folder in the artifact store where the model's files are."""
    (weights,) = server.folder.glob("*/models/*/artifacts/artifacts/model/model.safetensors")
    return weights.parents[2]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(artifacts, "TRY_AGAIN_AFTER_S", (0.1,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def ddpm(where, capsys, monkeypatch, tmp_path):
    """A command in this process, on the server: its exit code and the lines of its stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words, tracking_uri=where.tracking_uri):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--storage", where.storage, "--tracking-uri", tracking_uri])
        return ended.value.code, capsys.readouterr().err.splitlines()

    return call


@contextmanager
def changed(file, data):
    """The file with other content, or anew; then as it was."""
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(data)
    try:
        yield
    finally:
        file.unlink() if before is None else file.write_bytes(before)


def flipped(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    return changed(file, bytes(data))


def num_got(calls, name):
    """How often a file was asked for."""
    return sum(call.name.startswith("GET ") and call.key.endswith(f"/{name}") for call in calls.calls)


def of_samples(run_id, name, server):
    """The name of the call for a file of the samples."""
    (file,) = server.folder.glob(f"*/{run_id}/artifacts/samples/{name}")
    return f"GET 2.0/mlflow-artifacts/artifacts/{file.relative_to(server.folder)}"


def in_folder(folder):
    """Every file in it, hidden ones and half-made folders too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_samples_come_as_png_in_a_folder_a_class(where, sample_run, pictures, tmp_path):
    run_id = pull_samples_to(where, "pets", tmp_path / "out", "png")
    files = [tmp_path / f"out/{CLASSES[i % 2]}/00000{i // 4}-00000{i % 4}.png" for i in range(len(pictures))]

    assert run_id == sample_run
    assert in_folder(tmp_path) == sorted(str(file.relative_to(tmp_path)) for file in files)
    assert all(np.array_equal(Image.open(file), picture) for file, picture in zip(files, pictures, strict=True))


def test_samples_come_as_arrays(where, sample_run, pictures, tmp_path):
    pull_samples_to(where, sample_run, tmp_path / "out", "npz")

    assert in_folder(tmp_path) == ["out/samples.npz"]
    with np.load(tmp_path / "out/samples.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["arr_0"], pictures)
        assert arrays["arr_1"].tolist() == [0, 1] * (len(pictures) // 2)


def test_samples_come_as_a_shard_set_that_verifies(where, sample_run, tmp_path):
    pull_samples_to(where, "pets", tmp_path / "out", "webdataset")
    shards = open_shard_set(Folder(tmp_path / "out"))

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(in_folder(tmp_path)) == 1 + 2 * NUM_SHARDS
    assert check_listing(shards) == []
    assert [fault for claim in claims(shards) for fault in check_shard(shards.folder, claim, deep=True)] == []


def test_a_model_comes_as_weights_and_config(where, version, tmp_path):
    uri = pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")
    model = load_model(lambda name: (tmp_path / "out" / name).read_bytes())

    assert uri == version.uri
    assert in_folder(tmp_path) == ["out/config.json", "out/model.safetensors"]
    assert all(value.equal(network(2).state_dict()[name]) for name, value in model.unet.state_dict().items())


def test_a_model_comes_for_diffusers_as_it_was_logged_for_them(where, version, logged_model, tmp_path):
    pull_model_to(where, "pets/1", tmp_path / "out", "diffusers")
    logged = logged_model / "artifacts/model/diffusers"

    assert in_folder(tmp_path / "out") == in_folder(logged)
    assert all((tmp_path / "out" / name).read_bytes() == (logged / name).read_bytes() for name in in_folder(logged))


def test_every_file_of_the_weights_and_of_the_code_is_vouched_for(version, logged_model):
    listed = logged_model / "artifacts/model/sha256.json"
    sums = json.loads(listed.read_bytes())
    vouched = {name for name in in_folder(logged_model) if name.startswith(("artifacts/", "code/"))}

    assert sums.keys() == vouched - {"artifacts/model/sha256.json"} | {"served_model.py"}
    assert hashlib.sha256(listed.read_bytes()).hexdigest() == version.tags["ddpm.files_sha256"]


def test_each_file_is_asked_for_once_and_listed_once(where, calls, sample_run, tmp_path):
    pull_samples_to(where, "pets", tmp_path / "out", "webdataset")
    num_files = len(in_folder(tmp_path / "out"))

    assert all(num_got(calls, f"train-00000{i}.tar") == 1 for i in range(NUM_SHARDS))
    assert len(calls.calls) <= 2 * num_files + 10


def test_a_killed_pull_leaves_nothing_half_made_and_goes_on_with_what_is_missing(
    where, server, calls, sample_run, tmp_path
):
    second = of_samples(sample_run, "train-000001.tar", server)
    calls.forget(Fault("busy", Call(second, 1), lasting=True))
    words = ["pull", "samples", "pets", tmp_path / "out", "--as", "webdataset", "--tracking-uri", where.tracking_uri]
    command = [sys.executable, "-m", "workflows.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for(lambda: calls.num_faults, process)
    process.kill()
    process.communicate()
    (partial,) = tmp_path.glob(".out.partial-*")
    assert "files/samples/train-000000.tar" in in_folder(partial)
    assert not (tmp_path / "out").exists()

    calls.forget()
    pull_samples_to(where, "pets", tmp_path / "out", "webdataset")

    assert [num_got(calls, f"train-00000{i}.tar") for i in range(NUM_SHARDS)] == [0, 1, 1]
    assert check_listing(open_shard_set(Folder(tmp_path / "out"))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_kept_and_is_no_longer_right_is_pulled_again(where, calls, impatient, server, sample_run, tmp_path):
    calls.forget(Fault("busy", Call(of_samples(sample_run, "train-000002.tar", server), 1), lasting=True))
    with pytest.raises(JobFailed):
        pull_samples_to(where, "pets", tmp_path / "out", "png")
    (kept,) = tmp_path.glob(".out.partial-*/files/samples/train-000000.tar")
    kept.write_bytes(kept.read_bytes()[:-1])

    calls.forget()
    pull_samples_to(where, "pets", tmp_path / "out", "png")

    assert [num_got(calls, f"train-00000{i}.tar") for i in range(NUM_SHARDS)] == [1, 0, 1]
    assert len(in_folder(tmp_path / "out")) == NUM_SHARDS * PER_SHARD


def test_a_connection_that_is_cut_in_a_file_is_made_again(where, server, calls, sample_run, pictures, tmp_path):
    calls.forget(Fault("cut", Call(of_samples(sample_run, "train-000001.tar", server), 1)))
    pull_samples_to(where, "pets", tmp_path / "out", "npz")

    assert calls.num_faults == 1
    assert num_got(calls, "train-000001.tar") == 2
    with np.load(tmp_path / "out/samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], pictures)


def test_a_store_that_goes_away_in_between_ends_it_with_one_line(where, calls, impatient, version, tmp_path):
    pull_model_to(where, "pets@candidate", tmp_path / "before", "safetensors")
    weights = next(call for call in calls.calls if call.key.endswith("artifacts/model/model.safetensors"))
    calls.forget(Fault("drop before", weights, lasting=True))

    with pytest.raises(JobFailed, match=r"models:/pets/1 cannot be had from MLflow \(.*\); when it can") as caught:
        pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["artifacts/model/model.safetensors", "artifacts/model/sha256.json", "served_model.py"]
)
def test_a_byte_of_a_model_that_is_another_is_refused(where, logged_model, tmp_path, name):
    with flipped(logged_model / name), pytest.raises(JobFailed, match=f"pets/1 is damaged: {name} does not have the s"):
        pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()

    pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["train-000001.tar", "manifest.parquet/part-000002.parquet", "dataset.json"])
def test_a_byte_of_samples_that_is_another_is_refused(where, server, sample_run, tmp_path, name):
    (file,) = server.folder.glob(f"*/{sample_run}/artifacts/samples/{name}")

    with flipped(file, at=-40), pytest.raises(JobFailed, match=f"run {sample_run} is damaged: .*{Path(name).name}"):
        pull_samples_to(where, "pets", tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_model_that_is_missing_or_too_many_is_refused(where, logged_model, version, tmp_path):
    folder = logged_model / "artifacts/model"
    with changed(folder / "more.json", b"{}"), pytest.raises(JobFailed, match=r"model/more\.json is not among the"):
        pull_model(version)
    (folder / "package.txt").rename(tmp_path / "package.txt")
    with pytest.raises(JobFailed, match=r"artifacts/model/package\.txt is missing"):
        pull_model(version)
    (tmp_path / "package.txt").rename(folder / "package.txt")

    assert pull_model(version).keys() == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("name", ["artifacts/model/evil.pkl", "artifacts/more.pt", "code/x.JOBLIB", "readme.md"])
def test_a_pickle_slipped_in_is_refused_by_name(ddpm, logged_model, tmp_path, name):
    with changed(logged_model / name, pickle.dumps({"a": 1})):
        pulled = ddpm("pull", "model", "pets@candidate", "out")
        drawn = ddpm("sample", "--model", "pets@candidate", "--num", "2")

    for code, lines in (pulled, drawn):
        assert code == 1
        assert len(lines) == 1
        assert f"models:/pets/1 is damaged: {name} could be a pickle" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_picture_on_the_models_page_and_what_python_caches_are_no_damage(tracker, version, logged_model, tmp_path):
    cache = next(logged_model.glob("code/*")) / "__pycache__"
    cache.mkdir()
    (cache / "unet.cpython-311.pyc").write_bytes(b"cached")
    (tmp_path / "samples.png").write_bytes(encode_png(np.zeros((2, 2, 3), np.uint8)))
    tracker.client.log_model_artifact(version.model_id, str(tmp_path / "samples.png"))

    assert pull_model(version).keys() == {"model.safetensors", "config.json"}


def test_of_a_version_from_before_there_was_a_list_the_weights_are_checked(version, logged_model):
    old = type(version)(**{**asdict(version), "tags": {"ddpm.weights_sha256": version.tags["ddpm.weights_sha256"]}})

    assert pull_model(old) == pull_model(version)
    with (
        flipped(logged_model / "artifacts/model/model.safetensors"),
        pytest.raises(JobFailed, match=r"model\.safetensors does not have the sha256"),
    ):
        pull_model(old)


def test_a_registry_that_is_down_is_said_in_one_line_within_seconds(ddpm, tmp_path):
    for words in (("pull", "model", "pets", "out"), ("pull", "samples", "pets", "out"), ("sample", "--model", "pets")):
        started = time.monotonic()
        code, lines = ddpm(*words, tracking_uri="http://127.0.0.1:1")

        assert code == 2
        assert len(lines) == 1
        assert "tracking_uri must be an MLflow server that answers; http://127.0.0.1:1 does not" in lines[0]
        assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "cats"), "there is no model cats in .*; there are: pets"),
        (("model", "pets@best"), "there is no model pets@best in .*; pets has pets@candidate"),
        (("model", "pets/7"), "there is no model pets/7 in .*; pets has pets@candidate"),
        (("samples", "cats"), "there are no samples of 'cats' in .*; there are samples of: pets"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(ddpm, version, sample_run, tmp_path, words, said):
    code, (line,) = ddpm("pull", *words, "out")

    assert code == 2
    assert re.search(said, line)
    assert in_folder(tmp_path) == []


def test_a_run_that_drew_nothing_has_no_samples_to_pull(where, version, tmp_path):
    with pytest.raises(ValueError, match="run must be one that has drawn samples"):
        pull_samples_to(where, version.run_id, tmp_path / "out", "png")


def test_two_pulls_to_one_place_do_not_mix(where, version, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_WAIT_S", 0.1)
    with file_lock(tmp_path / ".out.lock", remove=True):
        with pytest.raises(JobFailed, match="is being worked on by process"):
            pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    pull_model_to(where, "pets@candidate", tmp_path / "out", "safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
