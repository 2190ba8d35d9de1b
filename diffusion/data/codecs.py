"""Bytes to pixels and back: what shards hold, and the fast way into a JPEG."""

from __future__ import annotations

import io
import math
import struct
import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from .png import encode_png

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import UInt8
    from numpy import ndarray

ENCODINGS = {"png": "png", "jpeg": "jpg", "webp": "webp", "npy": "npy"}
"""what the pictures of a shard may be encoded as -> the extension of their names"""
PILLOW_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
MODES = {1: "L", 3: "RGB"}
MAX_BYTES = 256 * 1024 * 1024
MAX_PIXELS = 64 * 1024 * 1024
MAX_SCANS = 100  # a scan is a few bytes and a pass over all pixels; encoders make about 10
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DAMAGES = (OSError, SyntaxError, ValueError)
"""what Pillow raises of a damaged file; changing bytes at random has found no other in half a million files"""
WEBP_METHOD = 4  # of 6; the time of WebP is what it is for
HARMLESS = "extraneous bytes before marker 0xd9"  # after the last pixel; cameras write such files
BLOCK = 8


class Rejected(ValueError):
    """An input that is refused. `reason` is one of a few words, for counting; `detail` says it in full."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def encode(pixels: UInt8[ndarray, "h w c"], encoding: str, quality: int = 95) -> bytes:
    """The bytes of a picture in one of ENCODINGS, the same for the same pixels; c is 1 or 3.

    `quality`, 1 … 100, is that of jpeg and webp; png and npy lose nothing. JPEG keeps colour at full resolution
    (4:4:4: a model would learn 4:2:0's blur). WebP has no grey, so c = 1 is refused, as is an unknown encoding,
    by ValueError.
    """
    if encoding == "png":
        return encode_png(pixels)
    if encoding == "jpeg":
        colours, subsampling = ("GRAY", "Gray") if pixels.shape[2] == 1 else ("RGB", "444")
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colours, subsampling))
    if encoding == "webp":
        return _encode_webp(pixels, quality)
    if encoding == "npy":
        out = io.BytesIO()
        np.lib.format.write_array(out, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
        return out.getvalue()
    raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding}")


def decode(data: bytes, extension: str) -> UInt8[ndarray, "h w c"]:
    """The pixels of a file with one of the extensions in ENCODINGS, or jpeg; c, 1 or 3, is the file's.

    What is stored, as it is: EXIF's orientation is not heeded. Raises Rejected: undecodable if damaged, cut, or of
    another kind than 8-bit grey or RGB (a palette, alpha, CMYK), too_large over MAX_BYTES or MAX_PIXELS.
    ValueError for another extension.
    """
    check_bytes(data)
    if extension == "npy":
        return _decode_npy(data)
    if extension not in PILLOW_FORMATS:
        raise ValueError(f"extension must be one of {', '.join(PILLOW_FORMATS)} or npy, got {extension}")
    if PILLOW_FORMATS[extension] == "JPEG" and (header := read_jpeg_header(data)) is not None:
        check_pixels(header.width, header.height)
        if header.channels not in MODES:
            raise Rejected("undecodable", f"a jpg of {header.channels} channels; must be grey or RGB")
        return decode_jpeg(data, header, header.channels)
    with refusing("undecodable"), open_image(data, (PILLOW_FORMATS[extension],)) as image:
        check_pixels(*image.size)
        if image.mode not in MODES.values():
            raise Rejected("undecodable", f"a {extension} of mode {image.mode}; must be {' or '.join(MODES.values())}")
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def decode_png(data: bytes) -> UInt8[ndarray, "h w c"]:
    """The inverse of `png.encode_png`. Raises Rejected if these are not the bytes of such a PNG."""
    return decode(data, "png")


class JpegHeader(NamedTuple):
    """What a JPEG says of itself before its pixels."""

    width: int
    height: int
    """as stored, not turned"""
    channels: int
    """1 grey, 3 colour, 4 CMYK or YCCK"""
    has_app1: bool
    """EXIF or XMP, either of which may turn the picture"""


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of an 8-bit Huffman JPEG, baseline or progressive; None for anything else: leave it to Pillow.

    Raises Rejected, too_large, for more than MAX_SCANS. A walk over the markers (T.81, B.1.1): 2 us, where Pillow's
    takes 18, and a search of the whole file for "Exif" is slower than decoding a tenth of it.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, has_app1, frame = 2, False, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:  # start of scan: the pixels
            return None if frame is None else JpegHeader(*frame, has_app1)
        if marker == 0xE1:
            has_app1 = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            if marker > 0xC2 or frame is not None or len(data) < at + 10:
                return None
            precision, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if precision != 8 or not height or not width or channels not in (1, 3, 4):
                return None
            frame = (width, height, channels)
            if marker == 0xC2 and data.count(b"\xff\xda") > MAX_SCANS:
                raise Rejected("too_large", f"a progressive JPEG of over {MAX_SCANS} scans")
        at += 2 + length
    return None


def decode_jpeg(data: bytes, header: JpegHeader, channels: int, eighths: int = 8) -> UInt8[ndarray, "h w c"]:
    """Decode a JPEG, each side reduced to `eighths`/8 of itself, rounded up, in the DCT domain (8, 4, 2 or 1).

    channels 1 takes the luma, which is grey as Pillow converts to it; 4 gives CMYK as stored, inverted. At 8 the
    pixels are Pillow's own. Raises Rejected for what is damaged or cut anywhere: libjpeg's warnings count as errors,
    while Pillow would fill with grey what a hole in the data has swallowed.
    """
    options = {
        "colorspace": {1: "GRAY", 3: "RGB", 4: "CMYK"}[channels],
        "min_width": math.ceil(header.width * eighths / BLOCK),
        "min_height": math.ceil(header.height * eighths / BLOCK),
    }
    try:
        pixels: UInt8[ndarray, "h w c"] = simplejpeg.decode_jpeg(data, **options)
    except ValueError as err:
        if HARMLESS not in str(err):
            raise Rejected("undecodable", str(err)) from err
        pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    return pixels


def as_image(pixels: UInt8[ndarray, "h w c"]) -> Image.Image:
    """The same as a Pillow image, grey or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def check_bytes(data: bytes) -> None:
    """Raise Rejected if a file is over MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise Rejected("too_large", f"{len(data)} bytes are over {MAX_BYTES}")


def check_pixels(width: int, height: int) -> None:
    """Raise Rejected if a picture is over MAX_PIXELS: to be asked of its header, before anything is decoded."""
    if width * height > MAX_PIXELS:
        raise Rejected("too_large", f"{width}x{height} is over {MAX_PIXELS} pixels")


def open_image(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The image with its header read; Pillow's own limit on pixels, higher than ours, raises either of BOMBS."""
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        return Image.open(io.BytesIO(data), formats=formats)


@contextmanager
def refusing(unknown: str, detail: str = "not of that format") -> Iterator[None]:
    """What Pillow raises of a file, as Rejected; `unknown` is the reason, with that detail, if it knows no format."""
    try:
        yield
    except Rejected:
        raise
    except UnidentifiedImageError as err:
        raise Rejected(unknown, detail) from err
    except BOMBS as err:
        raise Rejected("too_large", str(err)) from err
    except DAMAGES as err:
        raise Rejected("undecodable", str(err) or type(err).__name__) from err


def _encode_webp(pixels: UInt8[ndarray, "h w c"], quality: int) -> bytes:
    if pixels.shape[2] == 1:
        raise ValueError("encoding must be png, jpeg or npy for pictures of 1 channel: webp has no grey")
    out = io.BytesIO()
    as_image(pixels).save(out, format="WEBP", quality=quality, method=WEBP_METHOD)
    return out.getvalue()


def _decode_npy(data: bytes) -> UInt8[ndarray, "h w c"]:
    """A view of the data. numpy's own reader would allocate whatever the header claims before it reads."""
    start = 10 + int.from_bytes(data[8:10], "little")  # of version 1.0; uint8 never needs another
    shape, fortran = _npy_layout(data[:start])
    num_bytes = math.prod(shape)
    if len(data) - start != num_bytes:
        raise Rejected("undecodable", f"an npy of {len(data) - start} bytes; its header says {num_bytes}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=64)
def _npy_layout(header: bytes) -> tuple[tuple[int, ...], bool]:
    """Shape, and whether it is in Fortran's order. All headers of a shard set are alike, and slow to parse."""
    stream = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("an npy of another version than 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError, UnicodeError) as err:
        raise Rejected("undecodable", str(err)) from err
    if dtype != np.uint8 or len(shape) != 3 or shape[2] not in MODES or min(shape) < 1:
        raise Rejected("undecodable", f"an npy of {dtype} {shape}; must be uint8 [h w c], c 1 or 3")
    return shape, fortran
