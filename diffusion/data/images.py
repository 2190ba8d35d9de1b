"""Bytes of an image file to an array of the size that training wants; or a reason why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .codecs import (
    BLOCK,
    DAMAGES,
    ENCODINGS,
    MAX_BYTES,
    MAX_PIXELS,
    MODES,
    JpegHeader,
    Rejected,
    as_image,
    check_bytes,
    check_pixels,
    decode,
    decode_jpeg,
    decode_png,
    encode,
    open_image,
    read_jpeg_header,
    refusing,
)
from .png import encode_png

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

    Box = tuple[float, float, float, float]

__all__ = [
    "ENCODINGS", "FITS", "FORMATS", "MAX_BYTES", "MAX_PIXELS", "MODES", "ORIENTATION", "SUFFIXES", "Rejected",
    "decode", "decode_png", "encode", "encode_png", "fit_image", "in_words", "size_of",
]  # fmt: skip

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
UNKNOWN_FORMAT = ("unknown_format", f"not one of {', '.join(FORMATS)}")
FITS = ("crop", "pad")
EIGHTHS = (1, 2, 4)  # what the DCT is reduced to fast; libjpeg's other fractions are slower than no reduction
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""what turns a picture upright, by EXIF's orientation"""
ON_ITS_SIDE = (5, 6, 7, 8)
WHITE = 255
CMYK = 4


def fit_image(
    data: bytes, image_size: int, channels: int, fit: str = "crop", min_side: int = 0, max_aspect: float = 0.0
) -> UInt8[ndarray, "h w c"]:
    """Decode an image file, turn it upright and resize it (LANCZOS) to a square of image_size.

    fit "crop" takes the centre square, to half a pixel; "pad" the whole picture, between white borders; either
    enlarges what is smaller. channels 1 gives grey, 3 RGB. How each kind is read:

    - JPEG: reduced in the DCT domain as far as leaves image_size, then by LANCZOS (30 … 45 dB of LANCZOS alone, the
      less the finer the detail; aligned with it). CMYK and YCCK as Adobe writes them, without their ICC profile.
    - PNG, WebP, BMP: as they are; GIF and other animations: the first frame. Palettes are looked up.
    - EXIF's (or XMP's) orientation is followed; an EXIF that cannot be read is as good as none.
    - Transparency (alpha, or a transparent colour) is laid over white.
    - 16-bit grey is divided by 257, rounded down; 16-bit colour keeps its high bytes; 1-bit is 0 and 255.

    Raises Rejected for what is not a whole picture of a known format, and by its header, before a pixel is
    decoded: too_large over MAX_BYTES or MAX_PIXELS, too_small with a shorter side under min_side, too_elongated
    with longer / shorter over max_aspect (0 turns either off). ValueError for another fit.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit}")
    check_bytes(data)
    header = read_jpeg_header(data)
    if header is not None:
        _check_size(header.width, header.height, min_side, max_aspect)
        pixels = _fit_jpeg(data, header, image_size, channels, fit)
    else:
        with refusing(*UNKNOWN_FORMAT), open_image(data, FORMATS) as image:
            _check_size(image.width, image.height, min_side, max_aspect)
            pixels = _fit_other(image, image_size, channels, fit)
    if pixels.shape[2] < channels:
        pixels = np.repeat(pixels, channels, axis=2)
    return _in_square(pixels, image_size)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that an image file's header claims, turned upright. Raises Rejected if it is no picture."""
    with refusing(*UNKNOWN_FORMAT), open_image(data, FORMATS) as image:
        return (image.height, image.width) if _orientation(image) in ON_ITS_SIDE else image.size


def in_words(shape: tuple[int, ...]) -> str:
    """Height, width and channels, as people write them."""
    height, width, channels = shape
    return f"{width}x{height} in {channels} channel{'s' * (channels > 1)}"


def _check_size(width: int, height: int, min_side: int, max_aspect: float) -> None:
    """The same for a picture on its side."""
    check_pixels(width, height)
    shorter, longer = sorted((width, height))
    if shorter < min_side:
        raise Rejected("too_small", f"{width}x{height} has a side under {min_side} pixels")
    if max_aspect and longer > max_aspect * shorter:
        raise Rejected("too_elongated", f"{width}x{height} is over {max_aspect:g} times as long as wide")


def _place(width: int, height: int, image_size: int, fit: str) -> tuple[Box, tuple[int, int]]:
    """What part of the stored picture is taken, and the width and height that it is resized to."""
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), (image_size, image_size)
    scale = image_size / max(width, height)
    return (0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))


def _fit_jpeg(data: bytes, header: JpegHeader, image_size: int, channels: int, fit: str) -> UInt8[ndarray, "h w c"]:
    orientation = _orientation_of(data) if header.has_app1 else 1
    box, size = _place(header.width, header.height, image_size, fit)
    eighths = _eighths(max(box[2] - box[0], box[3] - box[1]), image_size)
    scale = eighths / BLOCK  # of the box, exact: what the reduced sides were rounded up by lies outside of it
    box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    stored = decode_jpeg(data, header, min(channels, header.channels) if header.channels < CMYK else CMYK, eighths)
    if header.channels < CMYK:
        return _resize(stored, box, size, orientation)
    inks = Image.fromarray(255 - stored, mode="CMYK")  # Adobe's are inverted, and no other writer is known
    return _resize(inks.convert(MODES[channels]), box, size, orientation)


def _fit_other(image: Image.Image, image_size: int, channels: int, fit: str) -> UInt8[ndarray, "h w c"]:
    """A picture that Pillow is to decode."""
    image.load()  # before its EXIF, which a PNG may keep behind its pixels: of those, damage counts
    box, size = _place(image.width, image.height, image_size, fit)
    return _resize(_flat(image, channels), box, size, _orientation(image))


def _eighths(side: float, image_size: int) -> int:
    """The least number of eighths of a side that still leaves image_size."""
    if side < BLOCK:  # fractions of so little are not told apart once rounded up
        return BLOCK
    return next((eighths for eighths in EIGHTHS if side * eighths >= image_size * BLOCK), BLOCK)


def _resize(
    picture: Image.Image | UInt8[ndarray, "h w c"], box: Box, size: tuple[int, int], orientation: int
) -> UInt8[ndarray, "h w c"]:
    """Resize by LANCZOS what the box holds, and turn it upright: it is small by now, and centred on either side."""
    left, top = int(box[0]), int(box[1])
    if orientation == 1 and box == (left, top, left + size[0], top + size[1]):  # there is nothing to compute
        pixels = np.asarray(picture)[top : top + size[1], left : left + size[0]]
    else:
        image = picture if isinstance(picture, Image.Image) else as_image(picture)
        image = image.resize(size, Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(image.transpose(TURNS[orientation]) if orientation in TURNS else image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _in_square(pixels: UInt8[ndarray, "h w c"], image_size: int) -> UInt8[ndarray, "s s c"]:
    """In the middle of a white square, unless it fills it."""
    height, width, channels = pixels.shape
    if (height, width) == (image_size, image_size):
        return np.ascontiguousarray(pixels)
    square = np.full((image_size, image_size, channels), WHITE, dtype=np.uint8)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _orientation_of(data: bytes) -> int:
    with refusing(*UNKNOWN_FORMAT), open_image(data, FORMATS) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DAMAGES:
        return 1
    return orientation if orientation in TURNS else 1


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """8 bits, opaque, and grey or RGB: grey may stay grey, to be repeated when it is small."""
    flat = _without_alpha(_to_8_bits(image))
    return flat if flat.mode in ("L", MODES[channels]) else flat.convert(MODES[channels])


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's own conversion would clip at 255, scaled to 8 bits; its transparent level, white."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint32).clip(0, 65535)
    return Image.fromarray(
        np.where(levels == image.info.get("transparency", -1), WHITE, levels // 257).astype(np.uint8)
    )


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa") and "transparency" not in image.info:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (WHITE,) * 4), picture)
