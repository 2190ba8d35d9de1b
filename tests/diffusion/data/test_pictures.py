import io

import numpy as np
import pytest
from PIL import Image

from diffusion.data.pictures import FolderPictures, open_pictures, read_mask


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def grey(height=8, width=8, value=0):
    return np.full((height, width), value, dtype=np.uint8)


def test_a_folders_pictures_are_listed_at_any_depth_and_other_files_passed_over(tmp_path, write_pictures):
    written = write_pictures(tmp_path / "a" / "b", 3)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    pictures = open_pictures(str(tmp_path), image_size=8, channels=3)

    assert list(pictures.names()) == [f"a/b/{name}" for name in written]
    for name, pixels in written.items():
        assert (pictures.read(f"a/b/{name}") == pixels.transpose(2, 0, 1)).all()


def test_of_a_shard_set_the_held_out_pictures_are_taken(tmp_path, write_pictures, make_set):
    write_pictures(tmp_path / "in", 60)
    shards = make_set(tmp_path / "in", tmp_path / "set", val_fraction=0.3)
    pictures = open_pictures(str(tmp_path / "set"), image_size=8, channels=3)
    names = list(pictures.names())

    assert len(names) == shards.num_samples("val") > 0
    assert pictures.read(names[-1]).shape == (3, 8, 8)
    assert pictures.fingerprint() == shards.digest


def test_a_shard_set_of_other_pictures_than_the_models_is_refused(tmp_path, write_pictures, make_set):
    write_pictures(tmp_path / "in", 40)
    make_set(tmp_path / "in", tmp_path / "set")

    with pytest.raises(
        ValueError, match=r"must have pictures of 16x16 in 1 channel, as the model; those of .* 8x8 in 3 "
    ):
        open_pictures(str(tmp_path / "set"), image_size=16, channels=1)


def test_a_folder_that_changes_gets_another_fingerprint(tmp_path, write_pictures):
    write_pictures(tmp_path, 2)
    before = open_pictures(str(tmp_path), 8, 3).fingerprint()
    save(tmp_path / "0001.png", np.zeros((8, 8, 3), dtype=np.uint8), compress_level=0)

    assert open_pictures(str(tmp_path), 8, 3).fingerprint() != before


def test_a_picture_is_never_cropped_or_resized(tmp_path):
    save(tmp_path / "a.png", grey(8, 7))

    with pytest.raises(ValueError, match=r"a\.png: it is 7x8, and must be 8x8, as the model draws"):
        FolderPictures(str(tmp_path), 8, 1).read("a.png")


def test_a_picture_on_its_side_counts_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", grey(8, 6), exif=exif)

    with pytest.raises(ValueError, match="it is 8x6, and must be 8x8"):
        FolderPictures(str(tmp_path), 8, 1).read("a.png")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_a_torn_picture_is_refused_by_name(tmp_path, keep):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(out, format="PNG")
    whole = out.getvalue()
    (tmp_path / "a.png").write_bytes(whole[: int(keep * len(whole))])

    with pytest.raises(ValueError, match=r"cannot use .*a\.png: "):
        FolderPictures(str(tmp_path), 8, 1).read("a.png")


def test_what_is_white_in_a_mask_is_to_be_painted(tmp_path):
    mask = grey()
    mask[:, 4:] = 255
    save(tmp_path / "a.png", mask)
    keep = read_mask(FolderPictures(str(tmp_path), 8, 1), "a.jpg")

    assert keep.shape == (1, 8, 8)
    assert keep[:, :, :4].all()
    assert not keep[:, :, 4:].any()


def test_a_mask_of_the_very_name_comes_first(tmp_path):
    save(tmp_path / "a.bmp", grey(value=255))
    save(tmp_path / "a.png", grey(value=0))

    assert not read_mask(FolderPictures(str(tmp_path), 8, 1), "a.bmp").any()


def test_a_mask_that_is_missing_or_of_another_size_is_refused(tmp_path):
    save(tmp_path / "a.png", grey(9, 8))
    masks = FolderPictures(str(tmp_path), 8, 1)

    with pytest.raises(ValueError, match=r"a\.png: it is 8x9, and must be 8x8"):
        read_mask(masks, "a.png")
    with pytest.raises(ValueError, match=r"must have one for every picture; there is no b\.jpg nor b\.png in "):
        read_mask(masks, "b.jpg")
