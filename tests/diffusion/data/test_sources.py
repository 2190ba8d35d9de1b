import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion.data.images import MAX_BYTES, decode_png
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
    source = source_of("cat/1.png", "dog/1.png", "loose.png")

    for listed in (source.blocks, lambda: source.classes):
        with pytest.raises(ValueError, match=r"not both: .* has 2 folders and also loose.png"):
            list(listed())


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


def test_two_folders_that_link_to_each_other_are_each_gone_into_once(source_of, tmp_path):
    source = source_of("cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "to").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "to").symlink_to(tmp_path / "cat")

    assert [item.source for item in items(source) if item.is_image] == [
        "cat/1.png", "cat/to/2.png", "dog/2.png", "dog/to/1.png",
    ]  # fmt: skip


def test_a_link_that_leads_nowhere_is_listed_so_that_it_can_be_refused(source_of, tmp_path):
    source = source_of("good.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")

    assert [item.source for item in items(source)] == ["good.png", "lost.png"]


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source must be .*, a folder, .*; there is none of these at .*/nowhere"):
        open_source([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("name", ["picture.png", "notes.txt", "lost.parquet", "lost.tar"])
def test_a_file_that_is_no_table_or_archive_or_not_there_is_not_a_source(name, tmp_path):
    if not name.startswith("lost"):
        (tmp_path / name).touch()

    with pytest.raises(ValueError, match=f"source must be .*; there is none of these at .*/{name}"):
        open_source([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat/1.png", "old.zip"], r"holds pictures and also tar or zip archives \(old.zip\)"),
        (["cat/1.png", "dog/old.tar.gz"], r"holds pictures and also tar or zip archives \(dog/old.tar.gz\)"),
        (["1.png", "2.parquet"], r"holds pictures and also Parquet tables \(2.parquet\)"),
    ],
)
def test_a_folder_of_two_kinds_is_refused_so_that_neither_is_lost(names, found, source_of):
    with pytest.raises(ValueError, match=f"one kind of thing, but .* {found}; give them as two sources"):
        items(source_of(*names))


@pytest.mark.parametrize(
    ("name", "message"), [("b/2.parquet", "cannot read .*a/b/2.parquet: "), ("3.zip", "cannot read .*a/3.zip: ")]
)
def test_the_first_file_of_a_kind_says_what_a_folder_is_however_deep(name, message, source_of):
    with pytest.raises(ValueError, match=message):  # it was opened as what it says it is: and is empty
        items(source_of("0.txt", ".hidden.tar", f"a/{name}", "b/4.png"))


def test_what_lies_beside_classes_and_is_no_file_is_listed_to_be_refused(source_of, tmp_path):
    source = source_of("cat/1.png", "notes.txt")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")

    assert [item.source for item in items(source)] == ["cat/1.png", "lost.png", "notes.txt", "pipe", "up"]
    assert source.classes == ["cat"]


def test_a_file_over_the_limit_is_refused_before_it_is_read(source_of, tmp_path):
    source = source_of("huge.png", "small.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    huge, small = source.read(items(source))

    assert (huge.reason, huge.detail) == ("too_large", f"{MAX_BYTES + 1} bytes are over {MAX_BYTES}")
    assert small == b""


def test_a_file_of_the_limit_is_read(source_of, tmp_path, monkeypatch):
    source = source_of("1.png")
    monkeypatch.setattr("diffusion.data.sources.folder.MAX_BYTES", 100)
    (tmp_path / "1.png").write_bytes(bytes(100))

    assert list(source.read(items(source))) == [bytes(100)]


def test_what_does_not_claim_to_be_a_picture_is_not_read(source_of):
    source = source_of("1.png", "log.txt")
    _, log = source.read(items(source))

    assert (log.reason, log.detail) == ("not_an_image_name", "its suffix is not that of an image")


def test_a_pipe_is_refused_and_not_waited_for(source_of, tmp_path):
    source = source_of("1.png")
    os.mkfifo(tmp_path / "pipe.png")
    listed = items(source)

    assert [item.source for item in listed] == ["1.png", "pipe.png"]
    assert list(source.read(listed))[1].reason == "unreadable"


@pytest.mark.parametrize("lost", ["gone", "link", "circle", "folder"])
def test_what_cannot_be_read_is_refused_alone(lost, source_of, tmp_path):
    source = source_of("1.png", "2.png")
    (tmp_path / "1.png").write_bytes(b"whole")
    listed = items(source)
    (tmp_path / "2.png").unlink()
    if lost == "folder":
        (tmp_path / "2.png").mkdir()
    elif lost != "gone":
        (tmp_path / "2.png").symlink_to(tmp_path / ("nowhere" if lost == "link" else "2.png"))
    whole, refused = source.read(listed)

    assert whole == b"whole"
    assert refused.reason == "unreadable"


def test_a_file_that_changes_after_it_was_listed_is_read_as_it_is_now(source_of, tmp_path):
    source = source_of("1.png")
    listed = items(source)
    (tmp_path / "1.png").write_bytes(b"longer than before")

    assert list(source.read(listed)) == [b"longer than before"]


def test_reading_does_not_list_the_folder(source_of, tmp_path, monkeypatch):
    listed = items(source_of("cat/1.png", "dog/1.png"))
    source = open_source([str(tmp_path)])
    monkeypatch.setattr("diffusion.files.os.listdir", lambda path: pytest.fail("listed"))

    assert list(source.read(listed)) == [b"", b""]


def test_several_sources_of_any_kind_are_one(source_of, tmp_path):
    source_of("a/cat/1.png", "b/2.png")
    source = open_source([str(tmp_path / "a"), str(tmp_path / "b"), "digits"])
    listed = items(source)

    assert names_and_labels(source)[:3] == [("cat/1.png", "cat"), ("1//2.png", None), ("2//digits/0000.png", "0")]
    assert source.classes == sorted([*"0123456789", "cat"])
    assert [list(source.read([item])) for item in listed[:2]] == [[b""], [b""]]


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
