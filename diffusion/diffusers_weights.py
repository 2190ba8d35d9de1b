"""The weights of a UNet under diffusers' names, out and in (its models/unets/unet_2d_blocks.py, version 0.42)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch

from .checkpoint import check_shapes, load_weights, read_tensors, shapes_of
from .layers import Downsample, Upsample

if TYPE_CHECKING:
    from torch import Tensor

    from .unet import UNet

LAYER_NAMES = {
    "conv_in": "conv_in",
    "time_embedding.0": "time_embedding.linear_1",
    "time_embedding.2": "time_embedding.linear_2",
    "label_embedding": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
BLOCK_NAMES = {
    "norm1": "resnets.{}.norm1",
    "conv1": "resnets.{}.conv1",
    "embedding": "resnets.{}.time_emb_proj",
    "norm2": "resnets.{}.norm2",
    "conv2": "resnets.{}.conv2",
    "skip": "resnets.{}.conv_shortcut",
    "attention.norm": "attentions.{}.group_norm",
    "attention.query": "attentions.{}.to_q",
    "attention.key": "attentions.{}.to_k",
    "attention.value": "attentions.{}.to_v",
    "attention.out": "attentions.{}.to_out.0",
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""of attention layers in files from before diffusers 0.15"""


def diffusers_names(unet: UNet) -> dict[str, str]:
    """The name in UNet2DModel of every weight of ours."""
    layers = dict(LAYER_NAMES)

    def name_block(ours: str, theirs: str, index: int) -> None:
        layers.update({f"{ours}.{a}": f"{theirs}.{b.format(index)}" for a, b in BLOCK_NAMES.items()})

    for side, modules in (("down", unet.down), ("up", unet.up)):
        level, index = 0, 0  # both count from where the picture comes in: up_blocks.0 is the lowest level
        for n, module in enumerate(modules):
            if isinstance(module, Downsample | Upsample):
                layers[f"{side}.{n}.conv"] = f"{side}_blocks.{level}.{side}samplers.0.conv"
                level, index = level + 1, 0
            else:
                name_block(f"{side}.{n}", f"{side}_blocks.{level}", index)
                index += 1
    for index in range(len(unet.middle)):
        name_block(f"middle.{index}", "mid_block", index)
    split = {name: name.rpartition(".") for name in unet.state_dict()}
    return {name: f"{layers[layer]}.{kind}" for name, (layer, _, kind) in split.items()}


def diffusers_weights(unet: UNet) -> bytes:
    """The safetensors file that UNet2DModel loads."""
    weights, names = unet.state_dict(), diffusers_names(unet)
    theirs = {names[name]: weight.detach().cpu() for name, weight in weights.items()}
    shaped = {name: weight.reshape(_shape(name, weight)).contiguous() for name, weight in theirs.items()}
    return safetensors.torch.save(shaped, metadata={"format": "pt"})


def load_diffusers_weights(unet: UNet, file: str, data: bytes) -> None:
    """Copy the weights of a UNet2DModel's safetensors file into a network of the same shape.

    Raises ValueError if the file is damaged or, naming the first difference, of another network.
    """
    found = {_modern(name): weight for name, weight in read_tensors(data, file).items()}
    names, ours = diffusers_names(unet), unet.state_dict()
    expected = {names[name]: _shape(names[name], weight) for name, weight in ours.items()}
    check_shapes(expected, shapes_of(found), f"{file} is of another network than its config.json")
    load_weights(unet, {name: found[names[name]].view_as(weight) for name, weight in ours.items()})


def _shape(name: str, weight: Tensor) -> tuple[int, ...]:
    """Of a weight under diffusers' name, where our matrix over pixels is a 1x1 convolution."""
    return (*weight.shape, 1, 1) if name.endswith("conv_shortcut.weight") else tuple(weight.shape)


def _modern(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name
