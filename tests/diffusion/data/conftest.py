import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import fs

from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard
from diffusion.files import Folder


@pytest.fixture(scope="session")
def write_pictures():
    """A function that fills a folder with different small PNGs and returns their pixels by file name."""

    def write(folder, num_pictures, side=8, seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        shape = (num_pictures, side, side, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        pictures = {f"{index:04d}.png": picture for index, picture in enumerate(pixels)}
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / name)
        return pictures

    return write


@pytest.fixture(scope="session")
def make_set():
    """A function that makes a whole shard set of small shards."""

    def make(source, out, **options):
        folder = Folder(out)
        config = ShardConfig(**{"source": (str(source),), "image_size": 8, "samples_per_shard": 64, **options})
        plan = make_plan(config, folder)
        return commit_plan(plan, [make_shard(plan, shard, folder) for shard in plan.shards], folder)

    return make


@pytest.fixture(scope="module")
def store():
    """The URI of a folder in a bucket of a real S3 server, over HTTP on the loopback interface."""
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


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    """Where blocks of object stores are kept by default: nowhere that a test may leave them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home/.cache/ray-ddpm/blocks"
