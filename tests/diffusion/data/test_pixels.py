import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from diffusion.data.images import Rejected, decode, encode
from diffusion.data.pixels import decode_into, extension_of

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def by_pillow(pixels=PIXELS, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


FILES = {
    **{encoding: encode(PIXELS, encoding) for encoding in ("png", "jpeg", "webp", "npy")},
    "4:2:0": by_pillow(subsampling=2),
    "progressive": by_pillow(progressive=True),
    "extraneous bytes": by_pillow()[:-2] + b"\x00\x00\xff\xd9",
    "with EXIF": by_pillow(exif=Image.Exif()),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_file_of_any_kind_is_decoded_into_its_place_as_anywhere_else(file):
    out = np.full((3, 16, 16, 3), 7, np.uint8)
    decode_into(file, out[1])

    assert np.array_equal(out[1], decode(file, extension_of(file)))
    assert (out[[0, 2]] == 7).all()


def test_grey_is_decoded_into_one_channel():
    file, out = encode(PIXELS[:, :, :1], "jpeg"), np.empty((16, 16, 1), np.uint8)
    decode_into(file, out)

    assert np.array_equal(out, decode(file, "jpg"))


@pytest.mark.parametrize(
    "file",
    [
        by_pillow(PIXELS[:8]),
        by_pillow(np.tile(PIXELS, (2, 1, 1))),
        by_pillow(PIXELS[:, :, 0]),
        encode(PIXELS[:4], "png"),
    ],
    ids=["lower", "higher", "grey", "png"],
)
def test_a_picture_of_another_shape_is_refused_and_not_fitted(file):
    with pytest.raises(Rejected, match="wrong_size"):
        decode_into(file, np.empty((16, 16, 3), np.uint8))


@pytest.mark.parametrize("file", [by_pillow()[:-40], by_pillow()[:200], FILES["progressive"][:-40]])
def test_a_damaged_file_is_refused(file):
    with pytest.raises(Rejected, match="undecodable"):
        decode_into(file, np.empty((16, 16, 3), np.uint8))


def test_what_begins_like_no_picture_is_refused_though_a_frame_is_in_it():
    with pytest.raises(Rejected, match="unknown_format"):
        decode_into(b"\x00" + by_pillow(), np.empty((16, 16, 3), np.uint8))


def test_the_fast_way_is_taken(monkeypatch):
    """Or it would not be one: what is asked of `decode` fails here."""
    monkeypatch.setattr("diffusion.data.pixels.decode", None)
    decode_into(simplejpeg.encode_jpeg(PIXELS), np.empty((16, 16, 3), np.uint8))
