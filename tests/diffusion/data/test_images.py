import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from diffusion.data.images import FITS, MAX_BYTES, MAX_PIXELS, Rejected, fit_image, size_of

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


def jpeg_of_header(width, height):
    """A JPEG that claims a size and ends where its pixels should begin."""
    data = file(Image.new("RGB", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    data = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    return data[: data.index(b"\xff\xda") + 14]


def webp_of_header(width, height):
    """A WebP whose frame claims a size and has next to no data."""
    data = file(Image.new("RGB", (8, 8)), "WEBP")
    at = data.index(b"\x9d\x01\x2a") + 3
    return data[:at] + struct.pack("<HH", width, height) + data[at + 4 :]


def oriented(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def smooth(width, height):
    """Slopes and a wave: another picture if it is turned, mirrored or moved by half a pixel."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([255 * x, 255 * y, 128 + 100 * np.sin(5 * x + 3 * y**2)], axis=2).astype(np.uint8)


def plainly(data, image_size, channels=3):
    """What Pillow makes of it: all pixels decoded, turned, and resized by LANCZOS alone."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    fitted = ImageOps.fit(upright.convert({1: "L", 3: "RGB"}[channels]), (image_size,) * 2, Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(image_size, image_size, channels)


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


def refused(data, *args, **options):
    """The reason why."""
    with pytest.raises(Rejected) as caught:
        fit_image(data, *args, **options)
    assert caught.value.detail
    return caught.value.reason


def one_colour(mode, colour, size=(4, 4)):
    return Image.new(mode, size, colour)


def png_of_header(width, height, depth=8, rows=b"\0" * 100):
    """An RGB PNG that claims a size and has, if nothing else is said, next to no data."""
    body = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
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


@pytest.mark.parametrize(("level", "grey"), [(0, 0), (256, 0), (257, 1), (65277, 253), (65280, 254), (65535, 255)])
def test_16_bit_grey_is_divided_by_257_and_not_clipped(level, grey):
    assert (fit_image(file(Image.fromarray(np.full((4, 4), level, dtype=np.uint16))), 4, 1) == grey).all()


@given(st.integers(0, 65535), st.sampled_from([1, 3]))
def test_16_bit_grey_is_scaled_alike_whatever_is_asked_for(level, channels):
    assert (
        fit_image(file(Image.fromarray(np.full((4, 4), level, dtype=np.uint16))), 4, channels) == level // 257
    ).all()


def test_a_transparent_level_of_16_bit_grey_becomes_white_and_its_neighbour_does_not():
    levels = Image.fromarray(np.array([[257, 258], [258, 257]], dtype=np.uint16))

    assert fit_image(file(levels, transparency=258), 2, 1)[:, :, 0].tolist() == [[1, 255], [255, 1]]


def test_16_bit_colour_keeps_its_high_bytes():
    rows = b"\0" + struct.pack(">6H", 0x00FF, 0x0100, 0xFFFF, 0x7F80, 0x8000, 0xFE00)
    data = png_of_header(2, 1, depth=16, rows=rows)

    assert fit_image(data, 1, 3).shape == (1, 1, 3)
    assert fit_image(data, 2, 3, "pad")[0].tolist() == [[0, 1, 255], [127, 128, 254]]


def test_of_one_bit_a_pixel_is_black_or_white():
    picture = Image.new("1", (2, 2))
    picture.putpixel((0, 1), 1)

    assert fit_image(file(picture), 2, 1)[:, :, 0].tolist() == [[0, 0], [255, 0]]


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


@given(
    st.integers(48, 300), st.integers(48, 300), st.integers(8, 100), st.integers(1, 8), st.sampled_from([1, 3]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_jpeg_is_fitted_as_pillow_would_whatever_its_size_and_orientation(w, h, size, orientation, channels, halved):
    data = file(Image.fromarray(smooth(w, h)), "JPEG", quality=95, exif=oriented(orientation), subsampling=2 * halved)
    error = fit_image(data, size, channels).astype(int) - plainly(data, size, channels)

    assert np.abs(error.mean(axis=(0, 1))).max() < 1.5
    assert np.abs(error).mean() < 2
    assert np.percentile(np.abs(error), 90) <= 6


@given(st.integers(64, 400), st.integers(64, 400), st.integers(8, 64))
@settings(max_examples=100, deadline=None)
def test_a_reduced_jpeg_is_not_moved(width, height, size):
    slope = np.broadcast_to(np.linspace(20, 235, width)[None, :, None], (height, width, 3))
    slope = slope + np.linspace(-20, 20, height)[:, None, None]
    data = file(Image.fromarray(slope.astype(np.uint8)), "JPEG", quality=100, subsampling=0)
    moved = fit_image(data, size, 3).astype(float) - plainly(data, size)
    a_pixel = 215 / width * min(width, height) / size

    assert np.abs(moved[:, 1:-1].mean()) < 0.15 * a_pixel + 0.5


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(
    ("image_size", "decibels"), [(400, 50), (256, 50), (214, 50), (200, 31), (150, 38), (64, 36), (32, 40)]
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_photograph_as_a_jpeg_is_fitted_nearly_as_pillow_would(name, image_size, decibels, options):
    data = file(Image.fromarray(load_sample_image(name)), "JPEG", quality=90, **options)

    assert psnr(fit_image(data, image_size, 3), plainly(data, image_size)) > decibels


@pytest.mark.parametrize(
    ("side", "image_size"), [((33, 33), 17), ((50, 33), 33), ((33, 51), 40), ((7, 7), 3), ((3, 3), 1), ((2, 5), 1)]
)
def test_a_jpeg_that_is_not_halved_is_fitted_exactly_as_pillow_would(side, image_size):
    data = file(Image.fromarray(noise(*side, 3)), "JPEG")

    assert np.array_equal(fit_image(data, image_size, 3), plainly(data, image_size))


@pytest.mark.parametrize(("side", "image_size"), [(128, 16), (130, 16), (256, 32), (512, 64)])
def test_a_jpeg_is_reduced_as_far_as_leaves_the_size(side, image_size):
    row, column = np.indices((side, side)) // 8
    board = ((row + column) % 2 * 255).astype(np.uint8)  # a block is one pixel when reduced, its neighbours not in it
    centre = fit_image(file(Image.fromarray(board), "JPEG", quality=100), image_size, 1)[4:-4, 4:-4]

    assert np.isin(centre, [0, 255]).all() == (side % 8 == 0)
    assert centre.std() > 90


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 16))
def test_a_turned_picture_is_fitted_as_the_upright_one(orientation, fit, width, height, size):
    stored = Image.fromarray(noise(height, width, 3) // 2 + 64)  # LANCZOS overshoots, and must not be clipped
    data = file(stored, exif=oriented(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    error = fit_image(data, size, 3, fit).astype(int) - fit_image(
        file(Image.fromarray(np.asarray(upright))), size, 3, fit
    )

    assert np.abs(error).max() <= 2  # rows are resized before columns, and rounded between
    assert size_of(data) == upright.size


@pytest.mark.parametrize("exif", [b"", b"nonsense", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_exif_that_cannot_be_read_leaves_the_picture_as_it_is(image_format, exif):
    picture = Image.fromarray(smooth(16, 16))
    prefix = b"Exif\0\0" if image_format == "JPEG" else b""
    data = file(picture, image_format, exif=prefix + exif)

    assert np.array_equal(fit_image(data, 16, 3), fit_image(file(picture, image_format), 16, 3))


def test_the_orientation_may_stand_in_xmp():
    picture = Image.fromarray(smooth(16, 16))
    data = file(picture, "JPEG", xmp=b'<x tiff:Orientation="3"/>', quality=95)

    assert np.array_equal(fit_image(data, 16, 3), fit_image(file(picture, "JPEG", quality=95), 16, 3)[::-1, ::-1])


@pytest.mark.parametrize(("size", "place"), [((12, 4), np.s_[2:5, :]), ((4, 12), np.s_[:, 2:5]), ((8, 8), np.s_[:, :])])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_padded_picture_is_whole_in_the_middle_of_white(size, place, image_format):
    pixels = fit_image(file(one_colour("RGB", BLUE, size), image_format, quality=100), 8, 3, fit="pad")
    borders = np.ones((8, 8), dtype=bool)
    borders[place] = False

    assert (pixels[borders] == 255).all()
    assert np.abs(pixels[place].astype(int) - BLUE).max() <= 3


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.sampled_from(["PNG", "JPEG"]))
@settings(deadline=None)
def test_a_padded_picture_reaches_two_opposite_sides_and_keeps_its_shape(width, height, size, image_format):
    grey = fit_image(file(Image.new("L", (width, height)), image_format), size, 1, "pad")[:, :, 0]
    rows, columns = (grey < 128).any(axis=1).sum(), (grey < 128).any(axis=0).sum()

    assert max(rows, columns) == size
    assert min(rows, columns) == max(1, round(size * min(width, height) / max(width, height)))
    assert ((grey < 10) | (grey == 255)).all()


def test_a_padded_jpeg_shows_what_a_padded_png_does():
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    jpeg, png = (fit_image(file(photo, image_format, **options), 96, 3, "pad") for image_format, options in
                 [("JPEG", {"quality": 95}), ("PNG", {})])  # fmt: skip

    assert psnr(jpeg, png) > 36


def test_another_fit_is_refused():
    with pytest.raises(ValueError, match="fit must be one of crop, pad, got stretch"):
        fit_image(b"", 8, 3, fit="stretch")


HEADERS = [png_of_header, jpeg_of_header, webp_of_header]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        ((4000, 99), {"min_side": 100}, "too_small"),
        ((99, 4000), {"min_side": 100}, "too_small"),
        ((2001, 1000), {"max_aspect": 2.0}, "too_elongated"),
        ((1000, 2001), {"max_aspect": 2.0}, "too_elongated"),
        ((9000, 9000), {}, "too_large"),
        ((16000, 16000), {}, "too_large"),
    ],
)
def test_what_the_filters_keep_out_is_refused_by_its_header(header, size, options, reason):
    assert refused(header(*size), 8, 3, **options) == reason


@pytest.mark.parametrize("header", HEADERS)
def test_what_is_just_within_the_filters_is_decoded(header):
    assert refused(header(2000, 1000), 8, 3, min_side=1000, max_aspect=2.0) == "undecodable"
    assert refused(header(2000, 1), 8, 3) == "undecodable"


@pytest.mark.parametrize("header", [png_of_header, jpeg_of_header])
def test_a_picture_of_just_so_many_pixels_is_not_too_large(header):
    assert refused(header(MAX_PIXELS // 8192, 8192), 8, 3) == "undecodable"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("fit", FITS)
def test_the_smallest_and_the_longest_picture_is_fitted(size, image_format, fit):
    pixels = fit_image(file(Image.new("RGB", size, BLUE), image_format, quality=100), 8, 3, fit)
    inked = (pixels < 255).any(axis=2).sum()

    assert pixels.shape == (8, 8, 3)
    assert inked == (64 if fit == "crop" or size == (1, 1) else 8)


def test_more_bytes_than_any_picture_has_are_refused():
    assert refused(bytes(MAX_BYTES + 1), 8, 3) == "too_large"
    assert refused(bytes(MAX_BYTES), 8, 3) == "unknown_format"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("as_ycck", [False, True])
def test_a_cmyk_jpeg_is_fitted_as_pillow_would(as_ycck, side, channels):
    inks = np.concatenate([smooth(side, side), np.full((side, side, 1), 40, dtype=np.uint8)], axis=2)
    image = Image.fromarray(inks, mode="CMYK")
    data = simplejpeg.encode_jpeg(255 - inks, 95, "CMYK", "444") if as_ycck else file(image, "JPEG", quality=95)

    assert psnr(fit_image(data, 16, channels), plainly(data, 16, channels)) > 38
    assert psnr(fit_image(data, 16, channels), plainly(file(image.convert("RGB")), 16, channels)) > 30


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_a_hole_is_refused_though_it_has_an_end_and_is_reduced(mode, progressive):
    data = file(Image.fromarray(noise(64, 64, 3)).convert(mode), "JPEG", progressive=progressive)

    assert refused(data[: len(data) * 3 // 4] + b"\xff\xd9", 8, 3) == "undecodable"
    assert refused(data[: len(data) * 3 // 4], 64, 3) == "undecodable"


def test_junk_between_the_parts_of_a_jpeg_is_left_to_pillow():
    data = file(Image.fromarray(smooth(16, 16)), "JPEG")
    at = data.index(b"\xff\xdb")

    assert np.array_equal(fit_image(data[:at] + b"\xff\xff" + data[at:], 16, 3), fit_image(data, 16, 3))


def test_of_an_animation_in_webp_or_png_the_first_frame_is_taken():
    frames = [one_colour("RGB", colour) for colour in (RED, BLUE, WHITE)]
    for image_format, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = file(frames[0], image_format, save_all=True, append_images=frames[1:], **options)

        assert (fit_image(data, 4, 3) == RED).all()
