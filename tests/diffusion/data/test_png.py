import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_image

from diffusion.data import png
from diffusion.data.png import encode_png, paeth_predictor

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3]))
BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 255]), st.just(7))  # of few values there are runs
PICTURES = BYTES.flatmap(lambda fill: hnp.arrays(np.uint8, SHAPES, elements=BYTES, fill=st.just(fill)))


def crop(name="flower.jpg", side=256, left=150, top=50, size=256):
    photo = Image.fromarray(load_sample_image(name)).crop((left, top, left + side, top + side))
    return np.asarray(photo.resize((size, size), Image.Resampling.LANCZOS))


def digits(size):
    pixels = (load_digits().images[:50] / 16 * 255).round().astype(np.uint8)
    return [np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.LANCZOS)) for digit in pixels]


def drawing(size, scale=1):
    """Discs and boxes on one colour; with smooth edges, of a scale over 1."""
    image = Image.new("RGB", (size * scale, size * scale), "orange")
    draw, places = ImageDraw.Draw(image), np.random.default_rng(0).integers(0, size * scale, (8, 2)).tolist()
    for colour, (x, y) in zip(("white", "teal", "black", "pink") * 2, places, strict=True):
        shape = draw.ellipse if x < y else draw.rectangle
        shape((x, y, x + size * scale // 3, y + size * scale // 4), fill=colour)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def text(size):
    image = Image.new("RGB", (size, size), "white")
    letters = np.random.default_rng(0).choice(list("abcdefghij"), (size // 12, size // 6))
    ImageDraw.Draw(image).multiline_text((2, 0), "\n".join("".join(line) for line in letters), fill="black")
    return np.asarray(image)


def palette(size):
    return np.asarray(Image.fromarray(crop(size=size)).quantize(16).convert("RGB"))


def letterboxed(size):
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[size * 3 // 8 : size * 5 // 8] = crop(size=size)[: size // 4]
    return pixels


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


PHOTOGRAPHS = [crop(name, size=size) for name in ("china.jpg", "flower.jpg") for size in (64, 256)]
DRAWINGS = [draw(size) for draw in (drawing, text, palette) for size in (64, 256)] + [drawing(64, 4), drawing(256, 4)]


def pillows(pixels, **options):
    """The bytes that Pillow makes of the same picture."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, "PNG", **options)
    return out.getvalue()


def with_channels(pixels):
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def num_bytes(pictures):
    return sum(len(encode_png(with_channels(pixels))) for pixels in pictures)


def num_bytes_of_pillow(pictures, **options):
    return sum(len(pillows(pixels, **options)) for pixels in pictures)


def chunks(data):
    """Each chunk of a file with its checksum checked, as section 5 lays them out."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + content),)
        yield kind, content
        at += 12 + length


def nearest_of(a, b, c):
    """Section 9.4, word for word."""
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))


def test_the_predictor_is_the_standards_for_all_three_bytes():
    b, c = (axis.ravel() for axis in np.meshgrid(*[np.arange(256, dtype=np.int16)] * 2))
    for value in range(256):
        a = np.full_like(b, value)
        ours = paeth_predictor(a.astype(np.uint8), b.astype(np.uint8), c.astype(np.uint8))

        assert np.array_equal(ours, nearest_of(a, b, c)), value


@given(PICTURES)
@settings(deadline=None)
def test_pillow_reads_what_was_written(pixels):
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        again = np.asarray(image)

        assert image.mode == {1: "L", 3: "RGB"}[pixels.shape[2]]
    assert np.array_equal(with_channels(again), pixels)


@pytest.mark.parametrize("pixels", [*PHOTOGRAPHS, *DRAWINGS, letterboxed(64), noise(64), noise(256)])
def test_whatever_is_in_a_picture_comes_back(pixels):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


@given(PICTURES)
@settings(deadline=None)
def test_a_file_is_a_header_one_stream_and_an_end(pixels):
    (ihdr, header), (idat, packed), end = chunks(encode_png(pixels))
    height, width, channels = pixels.shape
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)

    assert (ihdr, idat, end) == (b"IHDR", b"IDAT", (b"IEND", b""))
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    assert set(lines[:, 0].tolist()) in ({0}, {4})


@given(PICTURES, st.integers(1, 200))
@settings(deadline=None)
def test_the_bytes_do_not_depend_on_how_many_rows_are_filtered_at_once(pixels, band_bytes):
    whole = encode_png(pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "BAND_BYTES", band_bytes)

        assert encode_png(pixels) == whole


@pytest.mark.parametrize("shape", [(1, 70_000, 3), (70_000, 1, 1), (1500, 1300, 3)])
def test_a_picture_of_any_length_comes_back(shape):
    pixels = np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8)

    assert np.array_equal(with_channels(np.asarray(Image.open(io.BytesIO(encode_png(pixels))))), pixels)


@pytest.mark.parametrize("pictures", [PHOTOGRAPHS, digits(8), digits(32), [letterboxed(256)]])
def test_photographs_and_digits_are_as_small_as_pillows_of_the_same_strategy(pictures):
    assert num_bytes(pictures) < 1.01 * num_bytes_of_pillow(pictures, compress_type=zlib.Z_RLE)


@pytest.mark.parametrize("options", [{}, {"compress_type": zlib.Z_RLE}])
def test_drawings_are_smaller_than_pillows_of_either_strategy(options):
    assert num_bytes(DRAWINGS) < 0.8 * num_bytes_of_pillow(DRAWINGS, **options)
    assert all(num_bytes([pixels]) < 1.06 * num_bytes_of_pillow([pixels], **options) for pixels in DRAWINGS)


def test_noise_takes_hardly_more_than_its_bytes():
    assert num_bytes([noise(256)]) < 1.002 * 256 * 256 * 3


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_of_8_bits_is_refused(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[h w c\], c 1 or 3, for a PNG, got"):
        encode_png(pixels)
