"""Inception-v3 as FID uses it: the network of 2015-12-05, which is not quite that of the paper (Szegedy et al. 2016).

Its weights are Google's, published with TensorFlow and converted by others; what they are called there is what the
modules are called here, so that `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, which torch-fidelity has as
`weights-inception-2015-12-05-6726825d.pth`, can be loaded as it is. What differs from the paper: 1008 classes, no
auxiliary classifier; average pools that count no padding; a max pool in the pooling branch of the last block.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..checkpoint import check_shapes, shapes_of
from .features import Features, in_batches

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

CLASSES = 1008
FEATURES = 2048
SIDE = 299
BATCH = 64
"""pictures at a time: about 1 GB in float32"""
COUNTERS = "num_batches_tracked"
"""of training; older versions of PyTorch saved none"""


class InceptionV3(nn.Module):
    """A feature net of 2048-d vectors, averaged over the last 8x8 pixels, and 1008 logits without bias.

    That bias is left out of what the Inception Score is taken from is an accident of the code that came with it, and
    the standard since. Computes on the device that its weights are on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = MixedA(192, pooled=32)
        self.Mixed_5c = MixedA(256, pooled=64)
        self.Mixed_5d = MixedA(288, pooled=64)
        self.Mixed_6a = ReductionB(288)
        self.Mixed_6b = MixedC(768, middle=128)
        self.Mixed_6c = MixedC(768, middle=160)
        self.Mixed_6d = MixedC(768, middle=160)
        self.Mixed_6e = MixedC(768, middle=192)
        self.Mixed_7a = ReductionD(768)
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = MixedE(2048, max_pool=True)
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """In float32. Grey pictures are taken as RGB with three equal channels; any size is resized to 299x299.

        Raises ValueError for pictures of another number of channels.
        """
        if images.shape[1] not in (1, 3):
            raise ValueError(f"Inception-v3 needs pictures of 1 or 3 channels, got {images.shape[1]}")
        return in_batches(self._of_batch, images, BATCH)

    def _of_batch(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        pixels = images.to(self.fc.weight.device).expand(-1, 3, -1, -1).float()
        x = (resized(pixels) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = halved(x)
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        vectors = x.mean(dim=(2, 3))
        return Features(vectors, vectors @ self.fc.weight.T)


def resized(x: Float[Tensor, "b c h w"], side: int = SIDE) -> Float[Tensor, "b c side side"]:
    """Bilinear as in TensorFlow 1: pixel i lies at i * size / side, without antialiasing.

    Neither of torch's kinds: pixels are points on a grid that begins at 0 (not centres of squares), of which the
    corners are not aligned, so that the picture moves up and left by a fraction of a pixel.
    """
    for dim in (3, 2):
        size = x.shape[dim]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = at.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        part = (at - low).view(-1, 1) if dim == 2 else at - low
        start, end = x.index_select(dim, low), x.index_select(dim, high)
        x = start + (end - start) * part
    return x


def load_inception(data: bytes, name: str) -> InceptionV3:
    """The network with the weights of a file in PyTorch's format, on the CPU; nothing in it is executed.

    Raises ValueError, naming the file, if it is damaged or of another network.
    """
    weights = _read_weights(data, name)
    with torch.device("meta"):  # random weights would take longer than these, and torch's global generator
        net = InceptionV3()
    expected = net.state_dict()
    check_shapes(_without_counters(expected), _without_counters(weights), f"{name} is not FID's Inception-v3")
    counters = {counter: torch.tensor(0) for counter in expected if counter.endswith(COUNTERS)}
    net.load_state_dict(counters | {key: tensor.float() for key, tensor in weights.items()}, assign=True)
    # On a CPU, 0.6 of the time.
    return net.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _without_counters(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes_of(weights).items() if not key.endswith(COUNTERS)}


def _read_weights(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:  # damage makes its reader raise of every kind: struct.error, TypeError, AssertionError …
        detail = str(err).partition("\n")[0].partition(". ")[0]  # the next sentence says how to execute it
        raise ValueError(f"{name} is damaged, or no file of PyTorch weights: {type(err).__name__}: {detail}") from err
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in weights.items()
    ):
        raise ValueError(f"{name} is not FID's Inception-v3: it holds no tensors by name")
    for key, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is damaged: {key} has values that are not finite")
    return weights


class Conv(nn.Module):
    """A convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, width: int, out: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = False
    ) -> None:
        """`same`: padded, so that height and width stay."""
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding="same" if same else 0, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Never negative."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """The largest of 3x3 at every second pixel."""
    return F.max_pool2d(x, 3, stride=2)


def smoothed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The mean of those of 3x3 pixels that are in the picture."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35x35 pixels: 1x1, 5x5 and two 3x3 beside a pool (Szegedy et al. 2016, fig. 5, with a 5x5)."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(width, 64, 1)
        self.branch5x5_1 = Conv(width, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, same=True)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, same=True)
        self.branch_pool = Conv(width, pooled, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 224+pooled h w"]:
        """The branches' channels, one after the other."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(smoothed(x))], dim=1)


class ReductionB(nn.Module):
    """From 35x35 to 17x17 pixels (fig. 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 480+c h2 w2"]:
        """The branches' channels, one after the other."""
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, halved(x)], dim=1)


class MixedC(nn.Module):
    """17x17 pixels: 7x7 as rows and columns, once and twice, beside a pool (fig. 6)."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(width, 192, 1)
        self.branch7x7_1 = Conv(width, middle, 1)
        self.branch7x7_2 = Conv(middle, middle, row, same=True)
        self.branch7x7_3 = Conv(middle, 192, column, same=True)
        self.branch7x7dbl_1 = Conv(width, middle, 1)
        self.branch7x7dbl_2 = Conv(middle, middle, column, same=True)
        self.branch7x7dbl_3 = Conv(middle, middle, row, same=True)
        self.branch7x7dbl_4 = Conv(middle, middle, column, same=True)
        self.branch7x7dbl_5 = Conv(middle, 192, row, same=True)
        self.branch_pool = Conv(width, 192, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 768 h w"]:
        """The branches' channels, one after the other."""
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(smoothed(x))], dim=1)


class ReductionD(nn.Module):
    """From 17x17 to 8x8 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(width, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(width, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 512+c h2 w2"]:
        """The branches' channels, one after the other."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, halved(x)], dim=1)


class MixedE(nn.Module):
    """8x8 pixels: 3x3 that fork into a row and a column, beside a pool (fig. 7)."""

    def __init__(self, width: int, max_pool: bool = False) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Conv(width, 320, 1)
        self.branch3x3_1 = Conv(width, 384, 1)
        self.branch3x3_2a = Conv(384, 384, row, same=True)
        self.branch3x3_2b = Conv(384, 384, column, same=True)
        self.branch3x3dbl_1 = Conv(width, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, same=True)
        self.branch3x3dbl_3a = Conv(384, 384, row, same=True)
        self.branch3x3dbl_3b = Conv(384, 384, column, same=True)
        self.branch_pool = Conv(width, 192, 1)
        self.max_pool = max_pool

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2048 h w"]:
        """The branches' channels, one after the other."""
        near, far = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forked = [self.branch3x3_2a(near), self.branch3x3_2b(near)]
        forked += [self.branch3x3dbl_3a(far), self.branch3x3dbl_3b(far)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else smoothed(x)
        return torch.cat([self.branch1x1(x), *forked, self.branch_pool(pooled)], dim=1)
