"""Bytes of an image file to an array of the size that training wants, and back; or a reason why not."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import UInt8
    from numpy import ndarray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 64 * 1024 * 1024
MODES = {1: "L", 3: "RGB"}
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
ORIENTATION, ON_ITS_SIDE = 0x0112, 5
"""the EXIF tag, and from which of its values width and height are exchanged"""
WHITE = (255, 255, 255, 255)


class Rejected(ValueError):
    """An input that is refused. `reason` is one of a few words, for counting; `detail` says it in full."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def fit_image(data: bytes, image_size: int, channels: int) -> UInt8[ndarray, "h w c"]:
    """Decode an image file, turn it upright, crop its centre square and resize it (LANCZOS).

    channels 1 gives grey, 3 RGB. Transparency is laid over white; 16-bit grey is scaled to 8; of an animation
    the first frame is taken. Raises Rejected for what is not a whole picture of a known format, or too large.
    """
    with _refusing(), _opened(data) as image:
        if image.width * image.height > MAX_PIXELS:  # from the header: nothing has been decoded yet
            raise Rejected("too_large", f"{image.width}x{image.height} is over {MAX_PIXELS} pixels")
        upright = ImageOps.exif_transpose(image)
        flat = _without_alpha(_to_8_bits(upright))
        fitted = ImageOps.fit(flat.convert(MODES[channels]), (image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(image_size, image_size, channels)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that an image file's header claims, turned upright. Raises Rejected if it is no picture."""
    with _refusing(), _opened(data) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
        return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def _refusing() -> Iterator[None]:
    """What Pillow raises of a file, as Rejected."""
    try:
        yield
    except UnidentifiedImageError as err:
        raise Rejected("unknown_format", f"not one of {', '.join(FORMATS)}") from err
    except Rejected:
        raise
    except BOMBS as err:
        raise Rejected("too_large", str(err)) from err
    except (OSError, SyntaxError, ValueError) as err:  # what Pillow's codecs raise
        raise Rejected("undecodable", str(err)) from err


def encode_png(pixels: UInt8[ndarray, "h w c"]) -> bytes:
    """PNG bytes, the same for the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return out.getvalue()


def decode_png(data: bytes) -> UInt8[ndarray, "h w c"]:
    """The inverse of `encode_png`. Raises Rejected if these are not the bytes of a PNG."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as err:
        raise Rejected("undecodable", str(err)) from err
    return pixels.reshape(*pixels.shape[:2], -1)


def _opened(data: bytes) -> Image.Image:
    """The image with its header read; Pillow's own limit on pixels, higher than ours, raises either of BOMBS."""
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's own conversion would clip at 255, scaled to 8 bits."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) // 257).astype(np.uint8))


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa") and "transparency" not in image.info:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
