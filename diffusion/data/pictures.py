"""Pictures to be worked on one by one, by name: the files of a folder, or what a shard set holds out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from pyarrow import fs

from ..files import Folder
from .images import Rejected, fit_image, in_words, size_of
from .loader import SampleReader
from .plan import source_fingerprint
from .shard_set import DATASET, open_shard_set
from .sources import in_blocks, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, UInt8
    from numpy import ndarray

HALF = 128


class Pictures(Protocol):
    """Anything that lists its pictures in a fixed order and reads one by name."""

    def fingerprint(self) -> str:
        """Another one when the pictures may have changed."""

    def names(self) -> Iterator[str]:
        """Every picture once."""

    def read(self, name: str) -> UInt8[ndarray, "c h w"]:
        """Raises ValueError, naming the picture, if it is not a whole one of the wanted size."""


def open_pictures(uri: str, image_size: int, channels: int) -> Pictures:
    """The held-out pictures of the shard set at a URI, if there is one, else the files of that folder.

    Raises ValueError if there is neither, or the set's pictures are of another kind.
    """
    folder = Folder(uri)
    if not folder.exists(DATASET):
        return FolderPictures(uri, image_size, channels)
    shards = open_shard_set(folder)
    if (shards.image_size, shards.channels) != (image_size, channels):
        raise ValueError(
            f"source must have pictures of {in_words((image_size, image_size, channels))}, as the model; "
            f"those of {folder.uri} are of {in_words((shards.image_size, shards.image_size, shards.channels))}"
        )
    return HeldOut(SampleReader(shards, "val"))


class FolderPictures:
    """The pictures in a folder and its subfolders. Other files are passed over."""

    def __init__(self, uri: str, image_size: int, channels: int) -> None:
        self.folder = Folder(uri)
        if self.folder.fs.get_file_info(self.folder.path).type != fs.FileType.Directory:
            raise ValueError(f"pictures and masks must be in a folder; there is none at {self.folder.uri}")
        self.image_size, self.channels = image_size, channels

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times."""
        return source_fingerprint(in_blocks(walk(self.folder)))

    def names(self) -> Iterator[str]:
        """Paths within the folder."""
        return (item.source for item in walk(self.folder) if item.is_image)

    def read(self, name: str) -> UInt8[ndarray, "c h w"]:
        """Decoded as for training, but never cropped or resized: what is mended should be what was given."""
        try:
            data = self.folder.read(name)
            found = size_of(data)
            if found != (self.image_size, self.image_size):
                wanted = f"{self.image_size}x{self.image_size}, as the model draws"
                raise Rejected("wrong_size", f"it is {found[0]}x{found[1]}, and must be {wanted}")
            pixels = fit_image(data, self.image_size, self.channels)
        except Rejected as err:
            raise ValueError(f"cannot use {self.folder.uri}/{name}: {err.detail}") from None
        except FileNotFoundError:
            raise ValueError(f"cannot use {self.folder.uri}/{name}: there is no such file, or a link to none") from None
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class HeldOut:
    """The samples of a split, named by their position in it."""

    def __init__(self, reader: SampleReader) -> None:
        self.reader = reader

    def fingerprint(self) -> str:
        """The shard set's digest."""
        return self.reader.shard_set.digest

    def names(self) -> Iterator[str]:
        """000000.png and so on."""
        return (f"{position:06d}.png" for position in range(sum(self.reader.shard_sizes)))

    def read(self, name: str) -> UInt8[ndarray, "c h w"]:
        """The sample; its sha256 is checked."""
        images, _ = self.reader.read([int(name.removesuffix(".png"))])
        image: UInt8[ndarray, "c h w"] = images[0]
        return image


def read_mask(masks: FolderPictures, name: str) -> Bool[ndarray, "1 h w"]:
    """Which pixels of the picture of this name are whole: those that are dark in the mask of the same name.

    White is to be painted anew. A mask may have another suffix than its picture. Raises ValueError, naming
    it, if there is none or it is of another size.
    """
    stem = name.rpartition(".")[0]
    candidates = dict.fromkeys((name, f"{stem}.png"))
    for candidate in candidates:
        if masks.folder.exists(candidate):
            return masks.read(candidate)[:1] < HALF
    wanted = " nor ".join(candidates)
    raise ValueError(f"masks must have one for every picture; there is no {wanted} in {masks.folder.uri}")
