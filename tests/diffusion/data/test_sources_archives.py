import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.images import MAX_BYTES, encode_png
from diffusion.data.sources import check_source, open_source
from diffusion.data.tar import write_tar

PICTURES = {"cat/1.png": b"first", "cat/deep/2.jpg": b"", "dog/3.webp": bytes(range(256)) * 40}


def tar_of(members, form=tarfile.GNU_FORMAT):
    """A tar of (name, bytes), as Python's own tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in dict_or_pairs(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Unseekable(io.BytesIO):
    """Makes zipfile write checksums and sizes after the data."""

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


@pytest.mark.filterwarnings("ignore:Duplicate name")
def zip_of(members, method=zipfile.ZIP_DEFLATED, out=None):
    out = io.BytesIO() if out is None else out
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in dict_or_pairs(members):
            archive.writestr(name, data)
    return out.getvalue()


def dict_or_pairs(members):
    return members.items() if isinstance(members, dict) else members


WRITERS = {
    "gnu.tar": lambda members: tar_of(members, tarfile.GNU_FORMAT),
    "pax.tar": lambda members: tar_of(members, tarfile.PAX_FORMAT),
    "stored.zip": lambda members: zip_of(members, zipfile.ZIP_STORED),
    "deflated.zip": zip_of,
    "streamed.ZIP": lambda members: zip_of(members, out=Unseekable()),
    "streamed-and-stored.zip": lambda members: zip_of(members, zipfile.ZIP_STORED, Unseekable()),
}
any_archive = pytest.mark.parametrize("archive", WRITERS)
tar_and_zip = pytest.mark.parametrize("archive", ["gnu.tar", "deflated.zip"])


@pytest.fixture
def source_of(tmp_path):
    """A function that writes archives of these members, by file name, and opens their folder as a source."""

    def make(**archives):
        return write(tmp_path, {name: WRITERS[name](members) for name, members in archives.items()})

    return make


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return open_source([str(folder)])


def items(source):
    return [item for block in source.blocks() for item in block]


def contents(source):
    read = [content for block in source.blocks() for content in source.read(block)]
    return [content if isinstance(content, bytes) else content.reason for content in read]


def labels(source):
    return {item.source.partition("/")[2]: item.label for item in items(source)}


@any_archive
def test_every_member_is_listed_once_and_reads_back_byte_for_byte(archive, source_of):
    source = source_of(**{archive: PICTURES})

    assert [item.source for item in items(source)] == [f"{archive}/{name}" for name in PICTURES]
    assert contents(source) == list(PICTURES.values())


@any_archive
@pytest.mark.parametrize("sizes", [[10] * 200, [0, 1, 511, 512, 513, 100_000], [5_000_000, 10, 5_000_000]])
def test_members_of_any_size_read_back_in_blocks_and_in_part(archive, sizes, source_of):
    random = np.random.default_rng(0)
    members = {f"{i:03d}.png": random.bytes(size) for i, size in enumerate(sizes)}
    source = source_of(**{archive: members})
    blocks = list(source.blocks())

    assert contents(source) == list(members.values())
    assert all(len(block) <= 64 for block in blocks)
    assert [*source.read(blocks[0][1::2])] == list(members.values())[: len(blocks[0])][1::2]


@tar_and_zip
def test_members_far_from_each_other_are_read_too(archive, source_of):
    members = {"1.png": b"near", "notes.txt": bytes(70 << 20), "2.png": b"far"}
    source = source_of(**{archive: members})

    assert contents(source) == [b"near", "not_an_image_name", b"far"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.png", "b/a.png", "b/c.JPG", "x.txt", "./a.png", "a.png#512"]), st.binary()),
        max_size=8,
    ),
    st.sampled_from(["gnu.tar", "pax.tar", "stored.zip"]),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_whatever_the_members_are_each_has_a_name_of_its_own_and_its_own_bytes(tmp_path_factory, members, archive):
    source = write(tmp_path_factory.mktemp("folder"), {archive: WRITERS[archive](members)})
    listed = items(source)
    read = {
        item.source: content
        for block in source.blocks()
        for item, content in zip(block, source.read(block), strict=True)
    }

    assert len(read) == len(listed) == len(members)
    for item, (name, data) in zip(listed, members, strict=True):
        assert item.source.startswith(f"{archive}/{name}")
        assert item.is_image == name.lower().endswith(("png", "jpg"))
        assert read[item.source] == data or not item.is_image


@tar_and_zip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_two_inputs(archive, source_of):
    source = source_of(**{archive: [("a.png", b"one"), ("b.png", b"other"), ("a.png", b"two")]})
    listed = items(source)

    assert [item.source for item in listed] == [
        f"{archive}/a.png",
        f"{archive}/b.png",
        f"{archive}/a.png#{listed[2].at[0]}",
    ]
    assert contents(source) == [b"one", b"other", b"two"]
    assert [item.is_image for item in listed] == [True] * 3


def test_a_name_made_for_a_second_member_is_not_one_that_another_has(source_of):
    source = source_of(**{"gnu.tar": [("a.png", b""), ("a.png#1536", b""), ("a.png", b"")]})

    assert len({item.source for item in items(source)}) == 3
    assert contents(source) == [b"", "not_an_image_name", b""]


@any_archive
def test_a_label_is_what_its_sibling_says_else_its_first_folder_else_none(archive, source_of):
    members = {
        "train/0.png": b"",
        "train/0.cls": b"7",
        "train/1.cls": b" cat\n",
        "train/1.jpg": b"",
        "train/1.json": b"{}",
        "train/2.left.png": b"",
        "train/2.right.png": b"",
        "train/2.cls": b"007",
        "train/3.png": b"",
        "train/3.cls": b"-1",
        "train/4.png": b"",
        "./dog/deep/5.png": b"",
        "/abs/6.png": b"",
        "../up/7.png": b"",
        "8.png": b"",
    }

    assert labels(source_of(**{archive: members})) == {
        "train/0.png": "7",
        "train/1.jpg": "cat",
        "train/1.json": "cat",
        "train/2.left.png": "7",
        "train/2.right.png": "7",
        "train/3.png": None,
        "train/4.png": "train",
        "./dog/deep/5.png": "dog",
        "/abs/6.png": "abs",
        "../up/7.png": "up",
        "8.png": None,
    }


@tar_and_zip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_labels_of_samples_of_one_key_are_each_their_own(archive, source_of):
    members = [("0.png", b"a"), ("0.cls", b"1"), ("0.png", b"b"), ("0.cls", b"2")]

    assert [item.label for item in items(source_of(**{archive: members}))] == ["1", "2"]


def test_a_webdataset_tar_is_a_source(tmp_path):
    samples = [{"__key__": f"{i:06d}", "png": bytes([i]), "cls": str(i % 3).encode()} for i in range(100)]
    source = write(tmp_path, {"train.tar": write_tar(samples)})

    assert [item.label for item in items(source)] == [str(i % 3) for i in range(100)]
    assert contents(source) == [bytes([i]) for i in range(100)]
    assert source.classes is None


@tar_and_zip
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"", "b.png": b"", "a.cls": b"1"}, "the label a.cls has no member of its key beside it; sort"),
        ({"a.png": b"", "a.cls": b"\xff"}, r"the label a.cls must be text or a whole number, got b'\\xff'"),
        ({"a.png": b"", "a.cls": bytes(1025)}, "the label a.cls must have at most 1024 bytes, got"),
    ],
)
def test_a_label_that_is_lost_or_none_is_refused(archive, members, message, source_of):
    if "must have" in message and archive.endswith("zip"):
        members = {"a.png": b"", "a.cls": np.random.default_rng(0).bytes(2000)}

    with pytest.raises(ValueError, match=rf"cannot read .*/{archive}: {message}"):
        items(source_of(**{archive: members}))


@any_archive
def test_hidden_members_and_those_of_macos_are_passed_over_and_what_is_no_picture_is_recorded(archive, source_of):
    members = dict.fromkeys(
        [".a.png", "b/.c/d.png", "__MACOSX/b/._1.png", "b/__MACOSX/1.png", "b/1.png", "b/x.txt"], b""
    )

    assert contents(source_of(**{archive: members})) == [b"", "not_an_image_name"]


def test_folders_in_an_archive_are_no_inputs(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").touch()
    with tarfile.open(tmp_path / "folder.tar", "w") as tar, zipfile.ZipFile(tmp_path / "folder.zip", "w") as packed:
        tar.add(tmp_path / "cat", "./cat")
        packed.write(tmp_path / "cat", "./cat")
        packed.write(tmp_path / "cat/1.png", "./cat/1.png")

    for name in ("folder.tar", "folder.zip"):
        listed = items(open_source([str(tmp_path / name)]))
        assert [(item.source.partition("/")[2].removeprefix("./"), item.label) for item in listed] == [
            ("cat/1.png", "cat")
        ]


LONG = "/".join(["long" * 20] * 4)


@any_archive
@pytest.mark.parametrize(
    "name", ["ä/ö.png", "a b#c?.png", f"{LONG}/1.png", f"{LONG}ä.png", "x.tar/1.png", "y.zip/z.tar/1.png"]
)
def test_a_member_of_any_name_can_be_read(name, archive, source_of):
    source = source_of(**{archive: {name: b"its bytes"}})

    assert [item.source for item in items(source)] == [f"{archive}/{name}"]
    assert contents(source) == [b"its bytes"]


@tar_and_zip
@pytest.mark.parametrize("member", ["inner.tar/1.png", "1.png"])
def test_a_folder_may_be_called_like_an_archive(member, archive, tmp_path):
    source = write(tmp_path, {f"outer.tar/deep.zip/{archive}": WRITERS[archive]({member: b"inside"})})

    assert [item.source for item in items(source)] == [f"outer.tar/deep.zip/{archive}/{member}"]
    assert contents(source) == [b"inside"]


def test_pictures_in_a_folder_that_is_called_like_an_archive_are_pictures(tmp_path):
    source = write(tmp_path, {"cat.tar/1.png": b"cat", "dog.zip/0001.png": b"dog", "x.parquet/1.png": b"x"})

    assert source.classes == ["cat.tar", "dog.zip", "x.parquet"]
    assert contents(source) == [b"cat", b"dog", b"x"]


def test_archives_lie_at_any_depth_are_sorted_and_files_beside_them_are_recorded(tmp_path):
    files = {name: WRITERS["gnu.tar"]({"1.png": name.encode()}) for name in ("b.tar", "a/c.TAR", "c.tar")}
    source = write(tmp_path, {**files, "README.md": b"", ".hidden.tar": b"", "bb.zip": zip_of({"1.png": b"zip"})})

    assert [item.source for item in items(source)] == [
        "README.md", "a/c.TAR/1.png", "b.tar/1.png", "bb.zip/1.png", "c.tar/1.png",
    ]  # fmt: skip
    assert contents(source) == ["not_an_image_name", b"a/c.TAR", b"b.tar", b"zip", b"c.tar"]


@tar_and_zip
def test_an_archive_by_itself_is_a_source_and_its_members_have_the_same_names_as_in_its_folder(
    archive, source_of, tmp_path
):
    folder = source_of(**{archive: PICTURES})
    alone = open_source([str(tmp_path / archive)])

    assert list(alone.blocks()) == list(folder.blocks())
    assert contents(alone) == list(PICTURES.values())
    check_source([str(tmp_path / archive)])


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".TAR.ZST"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_compressed_tar_is_refused(suffix, alone, tmp_path):
    path = tmp_path / f"data{suffix}"
    path.touch()

    with pytest.raises(ValueError, match=f"archives must be plain tar or zip, .*; unpack {path}"):
        items(open_source([str(path if alone else tmp_path)]))


def test_members_that_are_named_like_rows_of_a_table_are_members(source_of):
    source = source_of(**{"gnu.tar": {"x.parquet/000001": b"", "x.parquet/1.png": b"picture"}})

    assert contents(source) == ["not_an_image_name", b"picture"]


def header_of(data):
    """The place of the last member's header (tar), or of zip's directory."""
    return data.rindex(b"dog/3.webp") if data[:2] != b"PK" else data.index(b"PK\1\2")


@any_archive
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[: header_of(data)],
        lambda data: data[: header_of(data) + 600],
        lambda data: data[: header_of(data) + 3] + b"\xff" + data[header_of(data) + 4 :],
    ],
)
def test_a_damaged_archive_is_refused_when_it_is_listed(archive, damage, tmp_path):
    data = WRITERS[archive](PICTURES)
    source = write(tmp_path, {archive: damage(data) if len(damage(data)) < len(data) or damage(data) != data else b""})

    with pytest.raises(ValueError, match=f"cannot read .*/{archive}: .*; make or download it again"):
        items(source)


@pytest.mark.parametrize("name", ["", "cat"])
@pytest.mark.parametrize("offset", [0, 40, 2**31])
def test_a_directory_of_a_zip_that_points_to_where_nothing_can_be_is_refused(name, offset, tmp_path):
    data = bytearray(zip_of({"cat": b"its bytes"}))
    line = data.index(b"PK\1\2")
    data[line + 28 : line + 30] = len(name).to_bytes(2, "little")
    data[line + 42 : line + 46] = offset.to_bytes(4, "little")
    del data[line + 46 + len(name) : line + 49]
    end = data.index(b"PK\5\6")
    data[end + 12 : end + 16] = (46 + len(name)).to_bytes(4, "little")
    source = write(tmp_path, {"some.zip": bytes(data)})

    if name and not offset:
        assert len(items(source)) == 1
        return
    with pytest.raises(
        ValueError, match=f"cannot read .*some.zip: its directory is damaged: .* no '{name}' at {offset};"
    ):
        items(source)


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    data = tar_of(PICTURES)
    source = write(tmp_path, {"cut.tar": data[: header_of(data)]})

    with pytest.raises(ValueError, match=r"cannot read .*/cut.tar: .*no end-of-archive mark"):
        items(source)


def test_a_link_to_no_archive_is_refused(tmp_path):
    (tmp_path / "lost.tar").symlink_to(tmp_path / "nowhere")

    with pytest.raises(ValueError, match=r"cannot read .*/lost.tar: "):
        items(open_source([str(tmp_path)]))


@pytest.mark.parametrize("archive", ["stored.zip", "deflated.zip", "streamed.ZIP"])
def test_a_damaged_member_of_a_zip_is_refused_alone(archive, tmp_path):
    middle = np.random.default_rng(0).bytes(1000)
    data = WRITERS[archive]({"1.png": b"first", "2.png": middle, "3.png": b"third"})
    place = data.index(middle[500:520])
    source = write(tmp_path, {archive: data[:place] + bytes(20) + data[place + 20 :]})

    assert contents(source) == [b"first", "unreadable", b"third"]


def test_an_encrypted_member_is_refused(tmp_path):
    data = bytearray(zip_of({"1.png": b"secret", "2.png": b"plain"}))
    data[6] |= 1  # of the first header
    data[data.index(b"PK\1\2") + 8] |= 1  # of its line in the directory
    source = write(tmp_path, {"some.zip": bytes(data)})
    (block,) = source.blocks()
    refused, plain = source.read(block)

    assert (refused.reason, refused.detail) == ("unreadable", "it is encrypted")
    assert plain == b"plain"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_compressed_in_another_way_is_refused(method, tmp_path):
    source = write(tmp_path, {"some.zip": zip_of({"1.png": b"packed" * 100}, method)})
    (block,) = source.blocks()
    (refused,) = source.read(block)

    assert refused.reason == "unreadable"
    assert "is compressed by method" in refused.detail


@pytest.mark.parametrize("archive", ["deflated.zip", "streamed.ZIP"])
@pytest.mark.parametrize("says", ["the truth", "a lie"])
def test_a_zip_bomb_is_not_unpacked(archive, says, tmp_path, monkeypatch):
    data = WRITERS[archive]({"bomb.png": bytes(2000), "1.png": b"small"})
    if says == "a lie":
        data = data.replace((2000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    for module in ("archives", "zip_archive"):
        monkeypatch.setattr(f"diffusion.data.sources.{module}.MAX_BYTES", 1999)
    source = write(tmp_path, {archive: data})

    assert contents(source) == ["too_large", b"small"]
    assert (items(source)[0].at[1] == 2000) == (says == "the truth")  # so that it is not even read


def test_a_member_over_the_limit_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = MAX_BYTES + 1
    with (tmp_path / "some.tar").open("wb") as file:
        file.write(info.tobuf())
        file.seek(MAX_BYTES + 512, io.SEEK_CUR)  # a hole takes no room on the disk
        file.write(tar_of({"1.png": b"small"}))

    assert contents(open_source([str(tmp_path)])) == ["too_large", b"small"]


@tar_and_zip
@pytest.mark.parametrize(
    "later",
    [
        {"cat/1.png": b"other", "dog/2.png": b"longer"},
        {"dog/2.png": b"other", "cat/1.png": b"first"},
        {"cat/1.png": b"a much longer one", "dog/2.png": b"other"},
        {},
        None,
    ],
)
def test_a_member_of_an_archive_that_was_exchanged_is_never_taken_for_another(archive, later, source_of, tmp_path):
    source = source_of(**{archive: {"cat/1.png": b"first", "dog/2.png": b"other"}})
    (block,) = source.blocks()
    (tmp_path / archive).unlink()
    if later is not None:
        source_of(**{archive: later})
    read = [content if isinstance(content, bytes) else content.reason for content in source.read(block)]

    assert len(read) == 2
    for item, content in zip(block, read, strict=True):
        assert content in ("unreadable", (later or {}).get(item.source.removeprefix(f"{archive}/")))


def test_reading_a_block_does_not_list_the_archive_again(source_of, monkeypatch):
    source = source_of(**{"gnu.tar": PICTURES, "deflated.zip": PICTURES})
    blocks = list(source.blocks())
    for lister in ("archives.LISTERS", "folder.walk"):
        monkeypatch.setattr(f"diffusion.data.sources.{lister}", None)

    assert [list(source.read(block)) for block in blocks] == [list(PICTURES.values())] * 2


@any_archive
def test_every_member_is_a_sample_or_a_reject(archive, write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "pictures", 70)
    members = {
        f"{'ab'[i % 2]}/{i:02d}.png": path.read_bytes()
        for i, path in enumerate(sorted(Path(tmp_path / "pictures").iterdir()))
    }
    members |= {"a/empty.png": b"", "b/notes.txt": b"notes"}
    write(tmp_path / "in", {archive: WRITERS[archive](members)})
    shards = make_set(tmp_path / "in", tmp_path / "set", max_reject_fraction=0.1, samples_per_shard=10)
    given = shards.folder.read_table("manifest.parquet", ["source", "label"]).to_pylist()
    refused = shards.folder.read_table("rejects.parquet").to_pylist()

    assert shards.classes == ["a", "b"]
    assert {row["source"]: row["reason"] for row in refused} == {
        f"{archive}/a/empty.png": "unknown_format",
        f"{archive}/b/notes.txt": "not_an_image_name",
    }
    assert sorted(row["source"] for row in given + refused) == sorted(f"{archive}/{name}" for name in members)
    assert all(row["label"] == "ab".index(row["source"].split("/")[1]) for row in given)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_a_tar_is_an_input_that_is_refused_and_not_one_that_is_lost(kind, tmp_path, make_set):
    picture = encode_png(np.zeros((8, 8, 3), np.uint8))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        first, link = tarfile.TarInfo("1.png"), tarfile.TarInfo("2.png")
        first.size = len(picture)
        archive.addfile(first, io.BytesIO(picture))
        link.type, link.linkname = kind, "1.png"
        archive.addfile(link)
    shards = make_set(tmp_path / "a.tar", tmp_path / "set", val_fraction=0, max_reject_fraction=1)
    (row,) = pq.read_table(tmp_path / "set" / "rejects.parquet").to_pylist()

    assert shards.num_samples("train") == 1
    assert row["source"] == "a.tar/2.png"
