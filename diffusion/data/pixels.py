"""A picture's file to pixels in their place: what training does most of all."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import simplejpeg

from .images import Rejected, decode

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

COLOURS = 3
MAGIC = {b"\x89PN": "png", b"\xff\xd8\xff": "jpg", b"RIF": "webp", b"\x93NU": "npy"}
"""how a file begins, three bytes, -> its extension, which the manifest does not keep: an adopted set may mix them"""


def decode_into(data: bytes, out: UInt8[ndarray, "h w c"]) -> None:
    """Decode a file of a shard set, whose pictures all have the shape of `out`, as `decode` would.

    Raises Rejected if it is no picture, damaged, or of another shape.
    """
    # Straight into its place saves a fifth: `decode` walks the header, and simplejpeg makes and clears an array.
    if out.shape[2] == COLOURS and _frame(*out.shape[:2]) in data:
        try:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except ValueError:
            pass  # damaged, no JPEG at all, or what `decode` forgives
        else:
            return
    pixels = decode(data, extension_of(data))
    if pixels.shape != out.shape:
        raise Rejected("wrong_size", f"a picture of shape {pixels.shape}, where the set's are {out.shape}")
    out[:] = pixels


@lru_cache(maxsize=8)
def _frame(height: int, width: int) -> bytes:
    """What is in a baseline JPEG of 8-bit colour and this size, and in no other (T.81, B.2.2): its start of frame."""
    return struct.pack(">BBHBHHB", 0xFF, 0xC0, 8 + 3 * COLOURS, 8, height, width, COLOURS)


def extension_of(data: bytes) -> str:
    """The extension of a picture's file, by how it begins. Raises Rejected for what is no picture."""
    extension = MAGIC.get(data[:3])
    if extension is None:
        raise Rejected("unknown_format", f"not one of {', '.join(MAGIC.values())}")
    return extension
