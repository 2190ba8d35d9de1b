import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffusion.data.images import MAX_PIXELS, Rejected, decode_png, encode_png, fit_image

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
LOSSLESS = ["PNG", "WEBP", "GIF", "BMP"]
ORIENTATION = 0x112
WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def file(image, image_format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format=image_format, **options)
    return out.getvalue()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one_colour(mode, colour, size=(4, 4)):
    return Image.new(mode, size, colour)


def png_of_header(width, height):
    """A PNG that claims a size and has next to no data."""
    body = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * 100),
        b"IEND": b"",
    }
    chunks = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in body.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_of_every_format_becomes_its_picture(image_format):
    few_colours = Image.fromarray(np.kron(noise(2, 2, 3), np.ones((8, 8, 1), dtype=np.uint8)))
    options = {"lossless": True} if image_format == "WEBP" else {}
    pixels = fit_image(file(few_colours, image_format, **options), 16, 3)
    error = np.abs(pixels.astype(int) - np.asarray(few_colours).astype(int))

    assert pixels.dtype == np.uint8
    assert error.max() <= (0 if image_format in LOSSLESS else 60)
    assert error.mean() < 8


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8, 1)), (3, (8, 8, 3))])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_picture_gets_the_shape_that_was_asked_for(mode, channels, shape):
    assert fit_image(file(Image.new(mode, (8, 8))), 8, channels).shape == shape


@given(st.integers(0, 255))
def test_grey_is_kept_in_grey_and_repeated_in_colour(level):
    data = file(one_colour("L", level))

    assert (fit_image(data, 4, 1) == level).all()
    assert (fit_image(data, 4, 3) == level).all()


def test_colour_becomes_grey_as_pillow_does_it():
    picture = Image.fromarray(noise(8, 8, 3))

    assert np.array_equal(fit_image(file(picture), 8, 1)[:, :, 0], np.asarray(picture.convert("L")))


def test_a_transparent_palette_colour_becomes_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 2), 1)
    pixels = fit_image(file(picture, transparency=0), 4, 3)

    assert pixels[2, 1].tolist() == list(BLUE)
    assert (np.delete(pixels.reshape(16, 3), 2 * 4 + 1, axis=0) == 255).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 255), BLACK),
    ],
)
def test_transparency_is_laid_over_white(mode, colour, expected):
    pixels = fit_image(file(one_colour(mode, colour)), 4, 3)

    assert (pixels == expected).all()


def test_a_transparent_colour_of_an_rgb_png_becomes_white():
    assert (fit_image(file(one_colour("RGB", RED), transparency=RED), 4, 3) == 255).all()


def test_cmyk_becomes_rgb():
    pixels = fit_image(file(one_colour("CMYK", (0, 255, 255, 0), size=(16, 16)), "JPEG", quality=100), 16, 3)

    assert np.abs(pixels.astype(int) - RED).max() <= 3


@given(st.integers(0, 65535))
def test_16_bit_grey_is_scaled_and_not_clipped(level):
    pixels = fit_image(file(Image.fromarray(np.full((4, 4), level, dtype=np.uint16))), 4, 1)

    assert np.abs(pixels.astype(float) - level / 257).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: np.transpose(a, (1, 0, 2))),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2)),
        (8, np.rot90),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(orientation, upright, image_format):
    stored = np.kron(np.array([[BLACK, RED], [BLUE, WHITE]], dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = fit_image(file(Image.fromarray(stored), image_format, exif=exif, quality=100), 16, 3)
    corners = np.s_[4::8, 4::8]  # away from the seams, where JPEG smears

    assert np.abs(pixels[corners].astype(int) - upright(stored)[corners].astype(int)).max() < 60


def test_of_an_animation_the_first_frame_is_taken():
    frames = [one_colour("RGB", colour) for colour in (RED, BLUE, WHITE)]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert (fit_image(data, 4, 3) == RED).all()


@pytest.mark.parametrize("size", [(12, 4), (4, 12)])
def test_of_an_oblong_picture_the_centre_square_is_taken(size):
    picture = one_colour("RGB", RED, size)
    picture.paste(BLUE, ((size[0] - 4) // 2, (size[1] - 4) // 2, (size[0] + 4) // 2, (size[1] + 4) // 2))

    assert (fit_image(file(picture), 4, 3) == BLUE).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_a_picture_of_any_size_is_fitted(width, height, image_size):
    pixels = fit_image(file(one_colour("RGB", BLUE, (width, height))), image_size, 3)

    assert pixels.shape == (image_size, image_size, 3)
    assert (pixels == BLUE).all()


@pytest.mark.parametrize("sides", [(8, 16), (16, 8), (9, 16), (32, 5)])
def test_resizing_is_pillows_lanczos(sides):
    picture = Image.fromarray(noise(sides[0], sides[0], 3))
    expected = np.asarray(picture.resize((sides[1], sides[1]), Image.Resampling.LANCZOS))

    assert np.array_equal(fit_image(file(picture), sides[1], 3), expected)


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = noise(8, 8, 3)

    assert np.array_equal(fit_image(file(Image.fromarray(pixels)), 8, 3), pixels)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_cut_anywhere_gives_the_whole_picture_or_is_rejected(image_format):
    data = file(Image.fromarray(noise(8, 8, 3)), image_format)
    whole = fit_image(data, 8, 3)
    reasons = []
    for num_bytes in range(len(data)):
        try:
            pixels = fit_image(data[:num_bytes], 8, 3)
        except Rejected as err:
            reasons.append(err.reason)
        else:
            assert np.array_equal(pixels, whole)  # only an end mark was missing

    assert set(reasons) == {"unknown_format", "undecodable"}
    assert len(reasons) > 0.9 * len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unknown_format"),
        (b"this is text", "unknown_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown_format"),
        (file(Image.new("RGB", (4, 4)), "TIFF"), "unknown_format"),  # Pillow could; we did not ask it to
        (file(Image.new("RGB", (4, 4)), "PPM"), "unknown_format"),
        (file(Image.fromarray(noise(64, 64, 3)))[:-4000], "undecodable"),
        (png_of_header(1000, 1000), "undecodable"),
        (png_of_header(8192, 8193), "too_large"),
    ],
    ids=["empty", "text", "svg", "tiff", "ppm", "cut", "no pixels", "too large"],
)
def test_what_is_not_a_whole_picture_of_a_known_format_is_rejected_with_the_reason(data, reason):
    with pytest.raises(Rejected) as caught:
        fit_image(data, 8, 3)

    assert caught.value.reason == reason
    assert caught.value.detail


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_a_bomb_is_rejected_as_too_large_however_large(size):
    with pytest.raises(Rejected) as caught:
        fit_image(png_of_header(*size), 8, 3)

    assert caught.value.reason == "too_large"


def test_a_bomb_is_rejected_without_a_warning():
    with pytest.raises(Rejected, match="too_large"):
        fit_image(png_of_header(10_000, 10_000), 8, 3)


def test_a_bomb_is_rejected_by_its_header_before_its_pixels_are_looked_for():
    with pytest.raises(Rejected, match=f"too_large: 8200x8200 is over {MAX_PIXELS} pixels"):
        fit_image(png_of_header(8200, 8200), 8, 3)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))))
def test_a_png_decodes_to_the_pixels_it_was_made_of(pixels):
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)


def test_the_same_pixels_make_the_same_png():
    assert encode_png(noise(8, 8, 3)) == encode_png(noise(8, 8, 3))


@pytest.mark.parametrize(
    "data", [b"", b"text", file(Image.new("RGB", (4, 4)), "JPEG"), encode_png(noise(8, 8, 3))[:60]]
)
def test_what_is_not_a_whole_png_does_not_decode(data):
    with pytest.raises(Rejected, match="undecodable"):
        decode_png(data)
