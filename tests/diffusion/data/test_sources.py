import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion.data.images import decode_png
from diffusion.data.sources import check_source, is_image_name, open_source


@pytest.fixture
def source_of(tmp_path):
    """A function that makes empty files of these names, and opens the folder as a source."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return open_source([str(tmp_path)])

    return make


def items(source):
    return [item for block in source.blocks() for item in block]


def names_and_labels(source):
    return [(item.source, item.label) for item in items(source)]


def test_subfolders_are_classes_by_sorted_name(source_of):
    source = source_of("dog/b.png", "cat/z.png", "dog/a.png", "ant/1.png")

    assert source.classes == ["ant", "cat", "dog"]
    assert names_and_labels(source) == [
        ("ant/1.png", "ant"),
        ("cat/z.png", "cat"),
        ("dog/a.png", "dog"),
        ("dog/b.png", "dog"),
    ]


def test_a_flat_folder_has_no_classes_and_no_labels(source_of):
    source = source_of("b.png", "a.jpg", "c.webp")

    assert source.classes == []
    assert names_and_labels(source) == [("a.jpg", None), ("b.png", None), ("c.webp", None)]


def test_a_nested_folder_belongs_to_the_class_at_the_top(source_of):
    source = source_of("cat/big/black/1.png", "cat/2.png", "dog/old/3.png")

    assert source.classes == ["cat", "dog"]
    assert names_and_labels(source) == [("cat/2.png", "cat"), ("cat/big/black/1.png", "cat"), ("dog/old/3.png", "dog")]


@pytest.mark.parametrize("hidden", [".hidden.png", ".cache/1.png", "cat/.hidden.png", "cat/.cache/1.png"])
def test_hidden_files_and_folders_are_not_looked_at(hidden, source_of):
    source = source_of("cat/1.png", hidden)

    assert source.classes == ["cat"]
    assert names_and_labels(source) == [("cat/1.png", "cat")]


def test_pictures_both_in_subfolders_and_beside_them_are_refused(source_of):
    with pytest.raises(ValueError, match=r"not both: .* has 2 folders and also loose.png"):
        source_of("cat/1.png", "dog/1.png", "loose.png")


def test_files_that_are_not_pictures_may_lie_beside_the_classes(source_of):
    source = source_of("cat/1.png", "README.txt")

    assert source.classes == ["cat"]


def test_files_that_are_not_pictures_are_listed_beside_classes_as_they_are_in_a_flat_folder(source_of):
    source = source_of("cat/1.png", "README.txt")

    assert "README.txt" in {item.source for item in items(source)}


def test_files_that_are_not_pictures_are_listed_so_that_they_can_be_recorded(source_of):
    source = source_of("1.png", "README.txt")

    assert names_and_labels(source) == [("1.png", None), ("README.txt", None)]


@pytest.mark.parametrize("name", ["a b.png", "a#b?.png", "a%20b.png", "ä.png", "a:b.png", "a.b.c.png"])
def test_a_file_of_any_name_can_be_read(name, source_of, tmp_path):
    source = source_of(name)
    (tmp_path / name).write_bytes(b"its bytes")

    assert list(source.read(items(source))) == [b"its bytes"]


def test_a_name_that_is_not_utf_8_is_refused_because_no_record_could_hold_it(source_of, tmp_path):
    source = source_of("good.png")
    (tmp_path / os.fsdecode(b"\xff.png")).touch()

    with pytest.raises(ValueError, match=r"is not UTF-8 .*xff\.png.*; rename it"):
        list(items(source))


def test_a_link_to_a_folder_that_it_is_in_is_listed_but_not_followed(source_of, tmp_path):
    source = source_of("good.png")
    (tmp_path / "up").symlink_to(tmp_path)

    assert [item.source for item in items(source)] == ["good.png", "up"]


def test_a_link_that_leads_nowhere_is_listed_so_that_it_can_be_refused(source_of, tmp_path):
    source = source_of("good.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")

    assert [item.source for item in items(source)] == ["good.png", "lost.png"]


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*/nowhere"):
        open_source([str(tmp_path / "nowhere")])


def test_a_file_is_not_a_source(tmp_path):
    (tmp_path / "picture.png").touch()

    with pytest.raises(ValueError, match=r"there is no folder .*/picture.png"):
        open_source([str(tmp_path / "picture.png")])


@pytest.mark.parametrize("names", [[], ["notes.txt"], [".hidden.png"], ["cat/notes.txt", "dog/notes.txt"]])
def test_a_source_without_a_picture_is_refused(names, source_of, tmp_path):
    source_of(*names)

    with pytest.raises(ValueError, match="source must have at least one image"):
        check_source([str(tmp_path)])


def test_one_picture_makes_a_source(source_of, tmp_path):
    source_of("cat/notes.txt", "dog/1.JPG")

    check_source([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "is_image"),
    [("a.png", True), ("a.PNG", True), ("a.jpeg", True), ("a.bmp", True), ("a.tiff", False), ("png", False)],
)
def test_a_picture_is_known_by_its_suffix(name, is_image):
    assert is_image_name(name) == is_image


def test_digits_are_those_of_scikit_learn():
    source, digits = open_source(["digits"]), load_digits()
    listed = items(source)
    pixels = np.stack([decode_png(data)[:, :, 0] for data in source.read(listed[:100])])

    assert [int(item.label) for item in listed] == digits.target.tolist()
    assert np.array_equal(np.round(pixels / 255 * 16), digits.images[:100])
    assert source.classes == list("0123456789")
