import numpy as np
import pytest

from diffusion.data.loader import SampleReader, keys_of_step
from diffusion.data.order import EpochOrder, OrderConfig

CONFIG = OrderConfig(seed=3, global_batch=24, num_lanes=8, shuffle_window=5)


@pytest.fixture(scope="module")
def shard_set(write_pictures, make_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_pictures(folder, 90, seed=0)
    return make_set(folder, tmp_path_factory.mktemp("set"), val_fraction=0.1)


@pytest.mark.parametrize("step", [0, 1, 7, 20])
def test_the_keys_of_a_step_are_those_of_its_samples_lane_after_lane(shard_set, step):
    keys = [key for tar in shard_set.split("train") for key in shard_set.manifest(tar, ["key"])["key"].to_pylist()]
    sizes = [tar.num_samples for tar in shard_set.split("train")]
    num_steps = EpochOrder(sizes, CONFIG, 0).num_steps
    order = EpochOrder(sizes, CONFIG, step // num_steps)
    positions = np.concatenate([order.lane_batch(lane, step % num_steps) for lane in range(8)])

    assert keys_of_step(SampleReader(shard_set), CONFIG, step) == [keys[position] for position in positions]
