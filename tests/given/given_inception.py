"""Weights of Inception-v3's shapes that no training made; with them, values stay of a size through the network."""

import io
import math

import torch

from diffusion.metrics.inception import InceptionV3


def random_inception(seed=0):
    """A state dict with running means and variances of their own."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items()}
    return {name: draw(name, shape, drawn) for name, shape in shapes.items()}


def draw(name, shape, drawn):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if len(shape) > 1:
        return torch.randn(shape, generator=drawn) * math.sqrt(2 / shape[1:].numel())
    if name.endswith(("running_var", "bn.weight")):
        return torch.rand(shape, generator=drawn) + 0.5
    return torch.randn(shape, generator=drawn) / 10


def as_file(weights, **options):
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(weights, file, **options)
    return file.getvalue()
