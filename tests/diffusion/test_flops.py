import torch

from diffusion.flops import matmul_flops_per_s, training_flops
from diffusion.unet import UNet, UNetConfig

SMALL = {"image_size": 8, "base_channels": 8, "norm_groups": 4, "channel_mults": (1,), "num_res_blocks": 1}


def test_it_is_three_times_what_the_forward_pass_multiplies_and_adds():
    config = UNetConfig(**SMALL)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        if isinstance(module, torch.nn.Conv2d):
            counted += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            counted += 2 * output.numel() * module.in_features

    unet = UNet(config)
    for module in unet.modules():
        module.register_forward_hook(count)
    unet(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), None)

    attention = 2 * (2 * 64 * 64 * 8)  # its two products, of 64 pixels and 8 channels, are not modules

    assert training_flops(config) == 3 * (counted + attention)


def test_it_grows_with_the_pictures_area_and_does_not_make_the_network():
    small, large = (training_flops(UNetConfig(**{**SMALL, "image_size": size})) for size in (32, 64))

    assert 4 <= large / small < 16  # attention grows with its square
    assert training_flops(UNetConfig(image_size=256, base_channels=1024)) > 1e13


def test_a_device_multiplies_matrices_at_some_speed():
    assert 1e9 < matmul_flops_per_s(torch.device("cpu"), torch.float32) < 1e14
