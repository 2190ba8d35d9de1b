import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.layers import SIDE_WORTH_FOLDING, Pointwise, Upsample, attend, folded
from diffusion.unet import UNet, UNetConfig


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_by_plain_products_is_torchs_own(heads):
    query, key, value = (randn(2, heads, 9, 5, seed=seed) for seed in range(3))

    torch.testing.assert_close(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("side", [1, SIDE_WORTH_FOLDING - 1, SIDE_WORTH_FOLDING, SIDE_WORTH_FOLDING + 3])
def test_upsampling_is_nearest_doubling_and_a_convolution_however_it_is_computed(side):
    layer, x = Upsample(5).double(), randn(2, 5, side, side).requires_grad_()
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), layer.conv.weight, layer.conv.bias, padding=1)
    found, dy = layer(x, x), randn(2, 5, 2 * side, 2 * side, seed=1)
    leaves = [x, layer.conv.weight, layer.conv.bias]

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy))


def test_a_folded_kernel_sums_what_falls_on_one_pixel():
    kernel = folded(torch.ones(1, 1, 3, 3))[0, 0]

    assert torch.equal(kernel, torch.tensor([1.0, 2, 2, 1])[:, None] * torch.tensor([1.0, 2, 2, 1]))


def test_a_pointwise_layer_is_a_1x1_convolution():
    layer, x = Pointwise(4, 6).double(), randn(2, 4, 3, 5)
    expected = F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    torch.testing.assert_close(layer(x), expected)


@pytest.mark.chaos  # a minute
def test_a_compiled_network_names_what_the_eager_one_does_and_trains_alike():
    shape = {"image_size": 16, "base_channels": 16, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    torch.manual_seed(0)
    eager = UNet(UNetConfig(**shape, attention_resolutions=(8,), dropout=0.0))
    for parameter in eager.parameters():
        nn.init.normal_(parameter, std=0.1)
    fast = UNet(eager.config)
    fast.load_state_dict(eager.state_dict())
    fast.compile_norms()
    x, t = randn(4, 3, 16, 16).float(), torch.tensor([0, 10, 500, 999])
    gradients = []
    for unet in (eager, fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=unet is fast):
            out = unet.train()(x, t)
        gradients.append(torch.autograd.grad(out.float().square().mean(), list(unet.parameters())))
    flat_eager, flat_fast = (torch.cat([g.flatten() for g in found]) for found in gradients)

    assert F.cosine_similarity(flat_eager, flat_fast, dim=0) > 0.999
    assert (flat_eager - flat_fast).norm() / flat_eager.norm() < 0.05
