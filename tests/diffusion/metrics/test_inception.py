import re
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from given_inception import as_file, random_inception
from torch.nn import functional as F

from diffusion.metrics import inception
from diffusion.metrics.inception import load_inception, resized

TORCHVISION_PARAMETERS = 23_834_568
"""of its 1000 classes, without the auxiliary classifier"""


@pytest.fixture(scope="module")
def weights():
    return random_inception()


@pytest.fixture(scope="module")
def net(weights):
    return load_inception(as_file(weights), "weights.pth")


def pictures(num, side=32, channels=3, seed=0):
    shape = (num, channels, side, side)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def agree(found, expected):
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_it_has_the_parameters_of_torchvisions_and_those_of_eight_more_classes(net):
    assert sum(tensor.numel() for tensor in net.parameters()) == TORCHVISION_PARAMETERS + 8 * (2048 + 1)


def test_its_tensors_have_the_names_and_shapes_of_the_published_file(net):
    shapes = [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]

    assert len(shapes) == 94 * 6 + 2  # convolutions, each with its norm, and the classifier
    assert shapes[:7] == [
        ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("Conv2d_1a_3x3.bn.weight", (32,)),
        ("Conv2d_1a_3x3.bn.bias", (32,)),
        ("Conv2d_1a_3x3.bn.running_mean", (32,)),
        ("Conv2d_1a_3x3.bn.running_var", (32,)),
        ("Conv2d_1a_3x3.bn.num_batches_tracked", ()),
        ("Conv2d_2a_3x3.conv.weight", (32, 32, 3, 3)),
    ]
    assert ("Mixed_5b.branch3x3dbl_2.conv.weight", (96, 64, 3, 3)) in shapes
    assert ("Mixed_6c.branch7x7dbl_4.conv.weight", (160, 160, 7, 1)) in shapes
    assert ("Mixed_7b.branch3x3dbl_3a.conv.weight", (384, 384, 1, 3)) in shapes
    assert shapes[-8:] == [
        ("Mixed_7c.branch_pool.conv.weight", (192, 2048, 1, 1)),
        ("Mixed_7c.branch_pool.bn.weight", (192,)),
        ("Mixed_7c.branch_pool.bn.bias", (192,)),
        ("Mixed_7c.branch_pool.bn.running_mean", (192,)),
        ("Mixed_7c.branch_pool.bn.running_var", (192,)),
        ("Mixed_7c.branch_pool.bn.num_batches_tracked", ()),
        ("fc.weight", (1008, 2048)),
        ("fc.bias", (1008,)),
    ]


def test_features_of_a_batch_are_those_of_its_parts_and_grey_is_rgb_of_equal_channels(net, monkeypatch):
    grey = pictures(3, channels=1)
    whole = net(grey)
    monkeypatch.setattr(inception, "BATCH", 2)

    assert whole.vectors.shape == (3, 2048)
    assert whole.logits.shape == (3, 1008)
    assert whole.vectors.dtype == whole.logits.dtype == torch.float32
    assert whole.vectors.std() > 0.1
    agree(net(grey.repeat(1, 3, 1, 1)), whole)


def test_logits_are_without_bias(net):
    found = net(pictures(1))

    torch.testing.assert_close(found.logits, found.vectors @ net.fc.weight.T, atol=1e-4, rtol=1e-4)


def test_no_pictures_have_no_features(net):
    found = net(pictures(0))

    assert found.vectors.shape == (0, 2048)
    assert found.logits.shape == (0, 1008)


def test_pictures_of_other_channels_are_refused(net):
    with pytest.raises(ValueError, match="pictures of 1 or 3 channels, got 4"):
        net(pictures(1, channels=4))


@pytest.mark.parametrize("side", [1, 2, 31, 299, 700])
def test_a_pixel_of_the_resized_lies_at_its_index_times_the_ratio_of_sides(side):
    ramp = torch.arange(side, dtype=torch.float32).expand(1, 2, side, side)
    expected = (torch.arange(299) * (side / 299)).clamp(max=side - 1)

    torch.testing.assert_close(resized(ramp), expected.expand(1, 2, 299, 299), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(resized(ramp.mT), expected.expand(1, 2, 299, 299).mT, atol=1e-3, rtol=1e-5)


def test_resizing_to_a_divisor_of_the_side_takes_every_so_many_pixels():
    images = pictures(2, side=36).float()

    assert torch.equal(resized(images, 12), images[:, :, ::3, ::3])


def test_loading_leaves_torchs_generator_alone(weights):
    data, state = as_file(weights), torch.get_rng_state()
    load_inception(data, "weights.pth")

    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_of_an_older_pytorch_is_the_same(net, weights):
    old = OrderedDict((name, tensor) for name, tensor in weights.items() if not name.endswith("tracked"))
    loaded = load_inception(as_file(old, _use_new_zipfile_serialization=False), "old.pth")

    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], net.state_dict()[name]) for name in old)
    assert not loaded.training


def small(**options):
    return as_file({"fc.weight": torch.zeros(3, 4)}, **options)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is damaged"),
        (b"<html>404</html>", "is damaged"),
        (small()[:-30], "is damaged"),
        (small()[:100], "is damaged"),
        (small(_use_new_zipfile_serialization=False)[:-5], "is damaged"),
        (as_file([torch.zeros(3)]), "holds no tensors by name"),
        (as_file({"fc.weight": "words"}), "holds no tensors by name"),
        (as_file({3: torch.zeros(3)}), "holds no tensors by name"),
        (as_file({"fc.weight": torch.full((3,), torch.nan)}), "is damaged: fc.weight has values that are not finite"),
        (small(), r"Inception-v3: Conv2d_1a_3x3.bn.bias should be \(32,\), is absent"),
        (as_file({"fc.weight": Harmful()}), "is damaged"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line_that_names_it(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        load_inception(data, "weights.pth")

    assert re.fullmatch(r"weights\.pth is .*", str(refused.value))
    assert not Path("touched").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_or_changed_anywhere_is_refused(zipped):
    data = bytearray(small(_use_new_zipfile_serialization=zipped))
    for at in range(0, len(data), len(data) // 20):
        changed = data.copy()
        changed[at] ^= 0x55
        for bad in (bytes(data[:at]), bytes(changed)):
            with pytest.raises(ValueError, match=r"^weights\.pth is "):
                load_inception(bad, "weights.pth")


def test_a_network_of_1000_classes_is_refused(weights):
    other = weights | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}

    with pytest.raises(ValueError, match=r"fc.bias should be \(1008,\), is \(1000,\)"):
        load_inception(as_file(other), "weights.pth")


@pytest.fixture
def peer(weights, tmp_path, monkeypatch):
    """torch-fidelity's network with the same weights. It asks for torchvision, of which this one needs nothing."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        monkeypatch.setattr(sys.modules["torchvision.datasets"], name, object, raising=False)
    torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    (tmp_path / "weights.pth").write_bytes(as_file(weights))
    return torch_fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth")
    )


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(32, 32), (17, 40), (299, 299), (400, 512)])
def test_it_is_torch_fidelitys(net, peer, size):
    images = F.interpolate(pictures(3).float(), size=size).round().byte()
    with torch.inference_mode():
        vectors, logits = peer(images)

    assert vectors.std() > 0.1
    agree(net(images), inception.Features(vectors, logits))
