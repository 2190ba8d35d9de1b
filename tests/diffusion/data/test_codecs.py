import io
import struct
from zlib import crc32

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_sample_image

from diffusion.data.codecs import MAX_BYTES, MAX_SCANS, JpegHeader, decode_jpeg, read_jpeg_header
from diffusion.data.images import ENCODINGS, Rejected, decode, decode_png, encode, encode_png

LOSSLESS = ["png", "npy"]
LOSSY = ["jpeg", "webp"]
PHOTO = np.ascontiguousarray(load_sample_image("flower.jpg")[100:196, 200:300])
GREY = PHOTO[:, :, :1].copy()
END = b"\xff\xd9"
pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])))


def file(image, image_format, **options):
    out = io.BytesIO()
    image.save(out, format=image_format, **options)
    return out.getvalue()


def npy(array, **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def with_header(jpeg, width=None, height=None, precision=None):
    """The same JPEG, but its header says otherwise."""
    at = next(at for marker in (b"\xff\xc0", b"\xff\xc2") if (at := jpeg.find(marker)) > 0) + 4
    old = struct.unpack_from(">BHH", jpeg, at)
    new = struct.pack(">BHH", precision or old[0], height or old[1], width or old[2])
    return jpeg[:at] + new + jpeg[at + 5 :]


def refused(reason, data, extension):
    with pytest.raises(Rejected) as caught:
        decode(data, extension)
    assert caught.value.reason == reason
    assert caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("encoding", LOSSLESS)
@given(pictures)
def test_a_lossless_encoding_gives_back_the_pixels(encoding, pixels):
    again = decode(encode(pixels, encoding, 90), ENCODINGS[encoding])

    assert np.array_equal(again, pixels)
    assert again.dtype == np.uint8


@pytest.mark.parametrize(("encoding", "pixels"), [("jpeg", PHOTO), ("jpeg", GREY), ("webp", PHOTO)])
def test_a_lossy_encoding_gives_back_nearly_the_pixels_and_the_more_of_them_the_higher_its_quality(encoding, pixels):
    sizes, errors = [], []
    for quality in (50, 80, 95):
        data = encode(pixels, encoding, quality)
        again = decode(data, ENCODINGS[encoding])
        sizes.append(len(data))
        errors.append(psnr(again, pixels))

        assert again.shape == pixels.shape

    assert errors == sorted(errors)
    assert sizes == sorted(sizes)
    assert errors[0] > 28
    assert errors[-1] > 34


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_pixels_make_the_same_bytes_wherever_they_lie_in_memory(encoding):
    strided = np.asfortranarray(PHOTO)

    assert encode(PHOTO, encoding, 90) == encode(strided, encoding, 90) == encode(PHOTO.copy(), encoding, 90)


@pytest.mark.parametrize(("encoding", "image_format"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_others_read_the_same_picture(encoding, image_format):
    data = encode(PHOTO, encoding, 90)
    image = Image.open(io.BytesIO(data))

    assert image.format == image_format
    assert np.array_equal(np.asarray(image), decode(data, ENCODINGS[encoding]))


def test_numpy_reads_an_npy():
    assert np.array_equal(np.load(io.BytesIO(encode(PHOTO, "npy", 90)), allow_pickle=False), PHOTO)


def test_a_jpeg_keeps_its_colours_at_full_resolution():
    assert simplejpeg.decode_jpeg_header(encode(PHOTO, "jpeg", 90))[3] == "444"


def test_a_png_of_a_photograph_is_as_small_as_pillows():
    assert len(encode_png(PHOTO)) < 1.04 * len(file(Image.fromarray(PHOTO), "PNG"))


def test_png_is_png_whatever_the_quality():
    assert encode(PHOTO, "png", 1) == encode(PHOTO, "png", 100) == encode_png(PHOTO)


def test_grey_is_refused_as_webp_which_has_none():
    with pytest.raises(ValueError, match="encoding must be png, jpeg or npy for pictures of 1 channel"):
        encode(GREY, "webp", 90)


def test_an_unknown_encoding_or_extension_is_refused():
    with pytest.raises(ValueError, match="encoding must be one of png, jpeg, webp, npy, got gif"):
        encode(PHOTO, "gif", 90)
    with pytest.raises(ValueError, match=r"extension must be one of .*, got gif"):
        decode(b"", "gif")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_cut_anywhere_decodes_to_the_whole_picture_or_is_refused(encoding):
    data = encode(noise(8, 9, 3), encoding, 90)
    whole = decode(data, ENCODINGS[encoding])
    reasons = []
    for num_bytes in range(len(data)):
        try:
            pixels = decode(data[:num_bytes], ENCODINGS[encoding])
        except Rejected as err:
            reasons.append(err.reason)
        else:
            assert np.array_equal(pixels, whole)  # only an end mark was missing

    assert set(reasons) == {"undecodable"}
    assert len(reasons) >= len(data) - (20 if encoding == "png" else 2)  # PNG's last chunk and two checksums


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "npy"])
@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", *map(bytes, [8, 128, 4096])])
def test_what_is_no_such_file_is_refused(extension, data):
    refused("undecodable", data, extension)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_under_the_extension_of_another_is_refused(encoding):
    data = encode(PHOTO, encoding, 90)

    for extension in set(ENCODINGS.values()) - {ENCODINGS[encoding]}:
        refused("undecodable", data, extension)


@pytest.mark.parametrize(
    ("mode", "image_format", "extension"),
    [
        ("P", "PNG", "png"),
        ("1", "PNG", "png"),
        ("LA", "PNG", "png"),
        ("RGBA", "PNG", "png"),
        ("I;16", "PNG", "png"),
        ("RGBA", "WEBP", "webp"),
        ("CMYK", "JPEG", "jpg"),
    ],
)
def test_a_picture_that_is_neither_grey_nor_rgb_of_8_bits_is_refused_by_name(mode, image_format, extension):
    detail = refused("undecodable", file(Image.new(mode, (8, 8)), image_format), extension)

    assert mode in detail or "4 channels" in detail


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "float32"),
        (np.zeros((4, 4, 3), dtype=np.int8), "int8"),
        (np.zeros((4, 4), dtype=np.uint8), "(4, 4)"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "(4, 4, 2)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "(0, 4, 3)"),
    ],
)
def test_an_npy_of_another_kind_is_refused_by_name(array, named):
    assert named in refused("undecodable", npy(array), "npy")


def test_an_npy_is_never_unpickled():
    refused("undecodable", npy(np.array([[[print]]]), allow_pickle=True), "npy")


def test_an_npy_of_a_later_version_is_refused_and_one_in_fortrans_order_is_read():
    assert "version" in refused("undecodable", npy(PHOTO, version=(2, 0)), "npy")
    assert np.array_equal(decode(npy(np.asfortranarray(PHOTO)), "npy"), PHOTO)


def test_an_npy_with_bytes_too_many_is_refused():
    refused("undecodable", encode(PHOTO, "npy", 90) + b"x", "npy")


@pytest.mark.parametrize("end", [b"", b"xx"])
def test_an_npy_that_is_not_as_long_as_its_header_says_is_refused_before_memory_is_taken(end):
    header = npy(np.zeros((0, 1, 3), dtype=np.uint8)).replace(b"(0, 1, 3), }     ", b"(9999999, 9999999, 3)}")[:128]

    assert "must be uint8" not in refused("undecodable", header + end, "npy")


def test_too_much_is_refused_by_its_length():
    refused("too_large", bytes(MAX_BYTES + 1), "npy")
    refused("undecodable", bytes(MAX_BYTES), "npy")


def test_a_jpeg_that_claims_too_many_pixels_is_refused_before_they_are_decoded():
    assert "60000x2000" in refused("too_large", with_header(encode(PHOTO, "jpeg", 90), 60000, 2000), "jpg")


def test_a_png_that_claims_too_many_pixels_is_refused_before_they_are_decoded():
    data = encode_png(PHOTO)
    head = data[12:16] + struct.pack(">II", 9000, 9000) + data[24:29]

    assert "9000x9000" in refused("too_large", data[:12] + head + struct.pack(">I", crc32(head)) + data[33:], "png")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_a_hole_is_refused_though_it_has_an_end(progressive):
    data = file(Image.fromarray(PHOTO), "JPEG", progressive=progressive)

    refused("undecodable", data[: len(data) * 3 // 4] + END, "jpg")


def test_a_jpeg_with_bytes_too_many_before_its_end_is_whole():
    data = encode(PHOTO, "jpeg", 90)

    assert np.array_equal(decode(data[:-2] + bytes(10) + END, "jpg"), decode(data, "jpg"))


def test_a_progressive_jpeg_of_very_many_scans_is_refused():
    data = file(Image.fromarray(PHOTO), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    num_scans = data.count(b"\xff\xda")

    refused("too_large", data[:-2] + last * (MAX_SCANS + 1 - num_scans) + END, "jpg")
    read_jpeg_header(data[:-2] + last * (MAX_SCANS - num_scans) + END)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["L", "RGB", "CMYK"]), st.booleans(), st.booleans())
def test_the_header_of_a_jpeg_is_as_pillow_reads_it(width, height, mode, progressive, turned):
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.new(mode, (width, height))
    data = file(image, "JPEG", progressive=progressive, icc_profile=bytes(600), **({"exif": exif} if turned else {}))

    assert read_jpeg_header(data) == JpegHeader(width, height, len(image.getbands()), turned)


def test_a_jpegs_header_cut_anywhere_is_none_and_never_another():
    data = file(Image.fromarray(PHOTO), "JPEG", progressive=True)
    headers = {read_jpeg_header(data[:num_bytes]) for num_bytes in range(len(data))}

    assert headers == {None, JpegHeader(100, 96, 3, False)}


@pytest.mark.parametrize(
    "data",
    [
        with_header(encode(PHOTO, "jpeg", 90), precision=12),
        encode(PHOTO, "jpeg", 90).replace(b"\xff\xc0", b"\xff\xc9"),
        encode(PHOTO, "jpeg", 90).replace(b"\xff\xc0", b"\xff\xc3"),
        encode_png(PHOTO),
    ],
    ids=["12 bits", "arithmetic", "lossless", "png"],
)
def test_the_header_of_an_unusual_jpeg_is_left_to_pillow(data):
    assert read_jpeg_header(data) is None


@pytest.mark.parametrize("eighths", [1, 2, 4, 8])
@given(st.integers(8, 50), st.integers(1, 50))
def test_a_reduced_jpeg_has_its_sides_rounded_up_and_its_colour(eighths, width, height):
    data = file(Image.new("RGB", (width, height), (0, 0, 255)), "JPEG", quality=100)
    pixels = decode_jpeg(data, JpegHeader(width, height, 3, False), 3, eighths)

    assert pixels.shape == (-(-height * eighths // 8), -(-width * eighths // 8), 3)
    assert np.abs(pixels.astype(int) - (0, 0, 255)).max() <= 2


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "GIF"])
def test_what_is_not_a_png_does_not_decode_as_one(image_format):
    with pytest.raises(Rejected, match="undecodable"):
        decode_png(file(Image.fromarray(PHOTO), image_format))
