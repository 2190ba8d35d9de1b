"""The same shard set and checkpoints in an object store: a real S3 server over HTTP, on the loopback interface."""

import pytest
import torch
from moto.server import ThreadedMotoServer
from pyarrow import fs

from diffusion.checkpoint import load_checkpoint, save_checkpoint
from diffusion.data.loader import SampleReader
from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import commit_plan, open_shard_set
from diffusion.data.shards import make_shard
from diffusion.files import Folder

CONFIG = ShardConfig(image_size=8, samples_per_shard=512)


@pytest.fixture(scope="module")
def store():
    """The URI of a folder in a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"127.0.0.1:{server.get_host_and_port()[1]}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3 = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True, region="us-east-1")
        s3.create_dir("bucket")
        yield f"s3://bucket/runs?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    server.stop()


def made(folder):
    plan = make_plan(CONFIG, folder)
    return commit_plan(plan, [make_shard(plan, shard, folder) for shard in range(plan.num_shards)], folder)


def test_a_shard_set_has_the_same_digest_and_samples_there_as_on_a_disk(store, tmp_path):
    there, here = made(Folder(store) / "data"), made(Folder(tmp_path))
    positions = [0, 5, 1000]

    assert there.digest == here.digest == open_shard_set(Folder(store) / "data").digest
    assert (SampleReader(there).read(positions)[0] == SampleReader(here).read(positions)[0]).all()


def test_a_checkpoint_survives_the_way_there_and_back(store, tmp_path):
    from diffusion.checkpoint import Checkpoint

    folder = Folder(store) / "train/attempt-1"
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    save_checkpoint(folder.write, Checkpoint(7, tensors, [tensors], tensors, {}))
    back = load_checkpoint(folder.read)

    assert back.step == 7
    assert back.model["weight"].equal(tensors["weight"])


def test_a_uri_keeps_its_options_on_the_way_down_and_up(store):
    folder = Folder(store) / "configs/run.json"

    assert folder.uri == store.replace("runs?", "runs/configs/run.json?")
    assert (folder.name, folder.parent.uri) == ("run.json", (Folder(store) / "configs").uri)


def test_a_deleted_folder_is_gone_and_a_missing_one_is_empty(store):
    folder = Folder(store)
    folder.write("mortal/file", b"x")
    before = folder.names("mortal")
    folder.delete("mortal")

    assert before == ["file"]
    assert folder.names("mortal") == []
    assert not folder.exists("mortal/file")
