import numpy as np
import pytest
from PIL import Image

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
