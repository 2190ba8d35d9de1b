"""A shard set in the forms that other programs read: a PNG file for each picture, or one npz of them all."""

from __future__ import annotations

from array import array
from typing import IO, TYPE_CHECKING
from zipfile import ZipFile, ZipInfo

import numpy as np

from .codecs import decode
from .png import encode_png
from .tar import group_samples, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .shard_set import ShardSet

SAMPLES = "samples.npz"


def export_png(shards: ShardSet, folder: Path) -> None:
    """KEY.png for every picture, in a folder a class where there are labels; a stored PNG as it is.

    Raises ValueError, naming the tar, if one is damaged.
    """
    for key, extension, data, label in _samples(shards):
        home = folder / _file_name(shards.classes[label]) if label >= 0 else folder
        home.mkdir(parents=True, exist_ok=True)
        picture = data if extension == "png" else encode_png(decode(data, extension))
        (home / f"{_file_name(key)}.png").write_bytes(picture)


def export_npz(shards: ShardSet, folder: Path) -> None:
    """`samples.npz` with pictures as `arr_0` (uint8 [n h w c]) and, where there are classes, labels as `arr_1` (int64).

    The names are those that evaluators of other projects look for.

    A tar is in memory at a time, and the labels. The same set gives the same bytes. Raises ValueError, naming the tar,
    if one is damaged.
    """
    shape = (sum(tar.num_samples for tar in shards.tars), shards.image_size, shards.image_size, shards.channels)
    labels = array("q")
    with ZipFile(folder / SAMPLES, "w") as archive:
        with archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as images:
            _write_header(images, np.dtype(np.uint8), shape)
            for _, extension, data, label in _samples(shards):
                images.write(_pixels(data, extension, shape[1:]))
                labels.append(label)
        if shards.classes:
            with archive.open(ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                _write_header(file, np.dtype(np.int64), (len(labels),))
                file.write(labels.tobytes())


def _samples(shards: ShardSet) -> Iterator[tuple[str, str, bytes, int]]:
    """Key, extension, bytes and label (-1: none) of every picture, in order; each tar's sha256 is checked."""
    for tar in shards.tars:
        data = shards.checked_tar(tar)
        samples = list(group_samples(read_headers(data)))
        if len(samples) != tar.num_samples:
            raise ValueError(f"{tar.name} has {len(samples)} samples, and should have {tar.num_samples}")
        for sample in samples:
            extension, member = sample.picture
            label = sample.label(data)
            if label >= len(shards.classes):
                raise ValueError(f"{tar.name} has label {label}, and there are {len(shards.classes)} classes")
            yield sample.key, extension, member.data(data), label


def _pixels(data: bytes, extension: str, shape: tuple[int, ...]) -> bytes:
    pixels = decode(data, extension)
    if pixels.shape != shape:
        raise ValueError(f"pictures must all be of shape {shape} for an npz; there is one of {pixels.shape}")
    return pixels.tobytes()


def _write_header(file: IO[bytes], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _file_name(text: str) -> str:
    """The same where it can be a file's name: a name of a class or a key may not lead anywhere else."""
    return text.replace("/", "_") if text.strip(".") else f"_{text}"
