import hashlib

import numpy as np
import pytest
from PIL import Image

from diffusion.data.codecs import ENCODINGS, encode
from diffusion.data.export import export_npz, export_png
from diffusion.data.shard_set import Header, commit
from diffusion.data.shards import Sample, write_shard
from diffusion.files import Folder

SIDE = 4


def a_set(folder, pictures, classes=(), encoding="png", per_shard=3):
    """A shard set of these pictures; the classes take turns."""
    reports = []
    for shard, start in enumerate(range(0, len(pictures), per_shard)):
        samples = []
        for index, picture in enumerate(pictures[start : start + per_shard]):
            image = encode(picture, encoding)
            samples.append(
                Sample(
                    index=index, split="train", image=image, extension=ENCODINGS[encoding], side=SIDE, source="drawn",
                    label=(start + index) % len(classes) if classes else -1,
                    source_sha256=hashlib.sha256(image).hexdigest(),
                )
            )  # fmt: skip
        reports.append(write_shard(shard, samples, [], Folder(folder)))
    header = Header(
        image_size=SIDE, channels=pictures.shape[3], classes=list(classes), config={}, config_fingerprint="",
        source_fingerprint="",
    )  # fmt: skip
    return commit(header, reports, Folder(folder))


def drawn(num, channels=3):
    return np.random.default_rng(0).integers(0, 256, (num, SIDE, SIDE, channels), dtype=np.uint8)


@pytest.mark.parametrize("encoding", ["png", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [1, 3, 7])
def test_an_npz_holds_every_picture_in_order(tmp_path, num, channels, encoding):
    pictures = drawn(num, channels)
    export_npz(a_set(tmp_path / "set", pictures, ["a", "b"], encoding), tmp_path)

    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["arr_0"], pictures)
        assert arrays["arr_1"].tolist() == [i % 2 for i in range(num)]
        assert (arrays["arr_0"].dtype, arrays["arr_1"].dtype) == (np.uint8, np.int64)


def test_an_npz_of_pictures_without_classes_has_no_labels(tmp_path):
    export_npz(a_set(tmp_path / "set", drawn(2)), tmp_path)

    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays.files == ["arr_0"]


def test_the_same_set_gives_the_same_npz(tmp_path):
    shards = a_set(tmp_path / "set", drawn(5))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export_npz(shards, tmp_path / name)

    assert (tmp_path / "one/samples.npz").read_bytes() == (tmp_path / "two/samples.npz").read_bytes()


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_a_png_holds_the_pixels_of_its_sample_whatever_they_were_stored_as(tmp_path, encoding):
    pictures = drawn(5)
    export_png(a_set(tmp_path / "set", pictures, encoding=encoding), tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())

    assert [file.name for file in files] == [f"00000{i // 3}-00000{i % 3}.png" for i in range(5)]
    assert all(np.array_equal(Image.open(file), picture) for file, picture in zip(files, pictures, strict=True))


def test_no_name_of_a_class_leads_out_of_the_folder(tmp_path):
    export_png(a_set(tmp_path / "set", drawn(4), ["..", "../up", "a/b", "a b"]), tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".._up", "_..", "a b", "a_b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_damaged_tar_is_refused_by_name(tmp_path):
    shards = a_set(tmp_path / "set", drawn(4))
    tar = tmp_path / "set/train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")

    with pytest.raises(ValueError, match=r"train-000001\.tar is damaged"):
        export_npz(shards, tmp_path)
