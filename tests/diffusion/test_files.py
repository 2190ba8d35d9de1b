import os
import resource
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager

import pyarrow as pa
import pytest
from pyarrow.fs import FileSelector, FileType

from diffusion.files import Folder

WRITE_FOR_EVER = """
import sys
from diffusion.files import Folder
folder, number = Folder(sys.argv[1]), 0
while True:
    folder.write("file", bytes([number % 256]) * 1_000_000)
    number += 1
    print(number, flush=True)
"""


@contextmanager
def full_disk(limit_bytes):
    """No file may grow beyond the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def on_disk(path):
    return [entry.name for entry in path.iterdir()]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "folder")


def test_what_is_written_is_read(folder):
    folder.write("a/b/c.bin", b"bytes")

    assert folder.read("a/b/c.bin") == b"bytes"
    assert (folder / "a" / "b").read("c.bin") == b"bytes"
    assert (folder / "a/b").read("c.bin") == b"bytes"


def test_a_write_replaces_the_whole_file(folder):
    folder.write("file", b"a longer text")
    folder.write("file", b"short")

    assert folder.read("file") == b"short"


def test_a_write_leaves_nothing_but_its_file(folder, tmp_path):
    folder.write("file", b"bytes")

    assert on_disk(tmp_path / "folder") == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(folder, tmp_path):
    folder.write("file", b"old")
    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        folder.write("file", bytes(10_000))

    assert folder.read("file") == b"old"
    assert on_disk(tmp_path / "folder") == ["file"]


def test_a_first_write_that_fails_leaves_no_file(folder, tmp_path):
    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        folder.write("file", bytes(10_000))

    assert on_disk(tmp_path / "folder") == []


def test_a_write_onto_a_folder_leaves_the_folder_and_no_temporary_file(folder, tmp_path):
    folder.write("name/inside", b"kept")
    with pytest.raises(IsADirectoryError):
        folder.write("name", b"bytes")

    assert folder.read("name/inside") == b"kept"
    assert on_disk(tmp_path / "folder") == ["name"]


def test_a_process_killed_while_it_writes_leaves_a_whole_file(folder):
    command = [sys.executable, "-c", WRITE_FOR_EVER, folder.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for _ in range(5):
            process.stdout.readline()
        process.kill()
    data = folder.read("file")

    assert len(data) == 1_000_000
    assert len(set(data)) == 1


@pytest.mark.parametrize("name", ["a b", "a#b?", "a%20b", "ä", "a:b"])
def test_a_folder_and_a_file_may_have_any_name(name, tmp_path):
    (Folder(tmp_path / name) / name).write(name, b"bytes")

    assert (tmp_path / name / name / name).read_bytes() == b"bytes"
    assert Folder(tmp_path / name / name).names() == [name]


def test_a_local_path_and_its_uri_are_the_same_folder(tmp_path):
    Folder(f"file://{tmp_path}").write("file", b"bytes")

    assert Folder(tmp_path).read("file") == b"bytes"
    assert Folder(f"file://{tmp_path}").is_local


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = Folder("here")
    monkeypatch.chdir("/")
    relative.write("file", b"bytes")

    assert relative.uri == str(tmp_path / "here")
    assert (tmp_path / "here" / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize("uri", ["foo://bucket/folder", "http://example.org/folder", "://"])
def test_a_uri_of_an_unknown_kind_is_refused(uri):
    with pytest.raises(ValueError, match=f"cannot open {uri}"):
        Folder(uri)


def test_another_filesystem_reads_what_is_written():
    folder = Folder("mock:///bucket")
    folder.fs.create_dir(folder.path)  # pyarrow's file system in memory; object stores have no folders to make
    folder.write("b", b"2")
    folder.write("a", b"1")

    assert not folder.is_local
    assert folder.names() == ["a", "b"]
    assert folder.read_range("b", 0, 10) == b"2"


def test_names_are_sorted(folder):
    for name in ["b", "a10", "a9", "c/inside", "B"]:
        folder.write(name, b"")

    assert folder.names() == ["B", "a10", "a9", "b", "c"]
    assert folder.names("c") == ["inside"]


def test_entries_say_what_they_are_and_links_are_followed(folder, tmp_path):
    folder.write("file", b"12345")
    folder.write("inner/file", b"")
    links = {"to-file": "file", "to-folder": "inner", "to-nothing": "nowhere", "circle": "circle", "long": "x" * 300}
    for name, target in {**links, "through": "file/x"}.items():
        (tmp_path / "folder" / name).symlink_to(tmp_path / "folder" / target)
    os.mkfifo(tmp_path / "folder" / "pipe")
    kinds = {info.base_name: info.type for info in folder.entries()}
    file, to_file = (next(i for i in folder.entries() if i.base_name == name) for name in ("file", "to-file"))

    assert kinds == {
        "circle": FileType.NotFound,
        "file": FileType.File,
        "inner": FileType.Directory,
        "long": FileType.NotFound,
        "pipe": FileType.Unknown,
        "through": FileType.NotFound,
        "to-file": FileType.File,
        "to-folder": FileType.Directory,
        "to-nothing": FileType.NotFound,
    }
    assert (file.size, file.mtime_ns) == (5, (tmp_path / "folder" / "file").stat().st_mtime_ns)
    assert (to_file.size, to_file.mtime_ns, to_file.path) == (5, file.mtime_ns, f"{tmp_path}/folder/to-file")


def test_entries_are_as_arrow_lists_them(folder):
    for name in ["b", "ä", "z/inside", "Z", "🐱", "\uffee"]:  # UTF-16 would sort the last two the other way
        folder.write(name, name.encode())
    listed = sorted(folder.fs.get_file_info(FileSelector(folder.path)), key=lambda info: info.base_name)

    for name in ("path", "base_name", "type", "size", "mtime_ns"):
        assert [getattr(info, name) for info in folder.entries()] == [getattr(info, name) for info in listed]


def test_a_name_that_is_not_utf_8_is_refused(folder, tmp_path):
    folder.write("good", b"")
    (tmp_path / "folder" / os.fsdecode(b"\xff")).touch()

    with pytest.raises(ValueError, match=r"a file name in .*folder/ is not UTF-8 .*xff.*; rename it"):
        folder.names()


def test_a_file_is_not_a_folder_that_could_be_listed(folder):
    folder.write("file", b"")

    with pytest.raises(NotADirectoryError):
        folder.names("file")


def test_a_flat_folder_is_listed_without_an_object_for_each_of_its_files(folder, tmp_path):
    names = [f"{number:06d}" for number in range(10_000)]
    (tmp_path / "folder").mkdir()
    for name in names:
        (tmp_path / "folder" / name).touch()
    tracemalloc.start()
    listed = sum(1 for _ in folder.entries())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert listed == len(names)
    assert peak < 80 * len(names)  # bytes; with an Arrow FileInfo for each it was 300


def test_a_folder_that_does_not_exist_is_empty(folder):
    assert folder.names() == []
    assert folder.names("nowhere") == []


def test_a_file_exists_once_it_is_written(folder):
    before = folder.exists("a/file")
    folder.write("a/file", b"")

    assert not before
    assert folder.exists("a/file")
    assert not folder.exists("a")


def test_a_file_that_is_not_there_cannot_be_read(folder):
    for read in (folder.read, folder.read_json, lambda name: folder.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("nowhere")


@pytest.mark.parametrize(
    ("offset", "num_bytes", "expected"),
    [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 5, b"89"), (10, 5, b""), (99, 5, b""), (0, 0, b"")],
)
def test_a_range_is_that_part_of_the_file_as_far_as_it_goes(offset, num_bytes, expected, folder):
    folder.write("file", b"0123456789")

    assert folder.read_range("file", offset, num_bytes) == expected


def test_deleting_what_is_not_there_is_no_error(folder):
    folder.write("file", b"")
    folder.delete("file")
    folder.delete("file")

    assert folder.names() == []


def test_a_folder_is_deleted_with_all_that_is_in_it(folder):
    folder.write("a/b/c", b"")
    folder.write("ab", b"")
    folder.delete("a")

    assert folder.names() == ["ab"]


def test_a_download_brings_every_file_at_any_depth(folder, tmp_path):
    folder.write("a", b"1")
    folder.write("b/c", b"2")
    (tmp_path / "copy").mkdir()
    folder.download(tmp_path / "copy")

    assert (tmp_path / "copy" / "a").read_bytes() == b"1"
    assert (tmp_path / "copy" / "b" / "c").read_bytes() == b"2"


def test_json_survives_the_round_trip_and_equal_values_are_equal_bytes(folder):
    value = {"b": [1, 2.5, None], "a": {"ä": True}}
    folder.write_json("one", value)
    folder.write_json("two", dict(reversed(value.items())))

    assert folder.read_json("one") == value
    assert folder.read("one") == folder.read("two")


def test_a_file_that_is_not_json_is_refused(folder):
    folder.write("file", b'{"cut": ')

    with pytest.raises(ValueError, match="Expecting value"):
        folder.read_json("file")


def test_a_table_survives_the_round_trip_whole_or_by_columns(folder):
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    folder.write_table("table.parquet/part", table)

    assert folder.read_table("table.parquet/part").equals(table)
    assert folder.read_table("table.parquet/part", columns=["b"]).equals(table.select(["b"]))
