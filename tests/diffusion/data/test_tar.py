import io
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.images import encode_png
from diffusion.data.tar import RECORD, Member, Sample, group_samples, read_headers, split_key, walk_tar, write_tar

SAMPLES = st.lists(
    st.fixed_dictionaries({"png": st.binary(max_size=1500)}, optional={"cls": st.integers(0, 999).map(str)}),
    max_size=6,
)


def numbered(samples):
    """The same samples with keys, and bytes for text."""
    return [
        {"__key__": f"000000-{index:06d}"} | {k: v.encode() if k == "cls" else v for k, v in sample.items()}
        for index, sample in enumerate(samples)
    ]


def pictures(num_pictures, side=4):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(num_pictures)]


def small_tar():
    return write_tar(numbered([{"png": b"a" * 700, "cls": "3"}, {"png": b"b" * 512, "cls": "11"}, {"png": b"c"}]))


@given(SAMPLES)
def test_what_is_written_is_read_back(samples):
    written = numbered(samples)
    data = write_tar(written)
    found = {member.name: member.data(data) for member in read_headers(data)}

    assert found == {f"{s['__key__']}.{kind}": s[kind] for s in written for kind in s if kind != "__key__"}


@given(SAMPLES)
def test_equal_samples_make_equal_bytes(samples):
    assert write_tar(numbered(samples)) == write_tar(numbered(samples))


@given(SAMPLES)
@settings(deadline=None)
def test_pythons_tarfile_finds_the_same_names_places_and_sizes(samples):
    data = write_tar(numbered(samples))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]

    assert [tuple(member) for member in read_headers(data)] == expected


def test_a_tar_is_plain_ustar_and_says_nothing_of_who_wrote_it_and_when():
    data = small_tar()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = list(archive)

    assert {data[member.offset + 257 : member.offset + 265] for member in members} == {b"ustar\x0000"}
    assert {(m.type, m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(b"0", 0, 0, 0, "", "")}
    assert all(not member.pax_headers for member in members)


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_every_key_label_and_pixel(tmp_path):
    pixels = pictures(10)
    samples = numbered([{"png": encode_png(picture), "cls": str(i % 3)} for i, picture in enumerate(pixels)])
    (tmp_path / "train-000000.tar").write_bytes(write_tar(samples))
    read = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False).decode("rgb8"))

    assert [sample["__key__"] for sample in read] == [sample["__key__"] for sample in samples]
    assert [sample["cls"] for sample in read] == [i % 3 for i in range(10)]
    assert np.array_equal([sample["png"] for sample in read], pixels)


def test_a_tar_cut_anywhere_before_its_end_mark_is_refused():
    data = small_tar()
    last = list(read_headers(data))[-1]
    end_mark = last.offset + RECORD
    for num_bytes in range(end_mark + 1):
        with pytest.raises(ValueError, match="cut short"):
            list(read_headers(data[:num_bytes]))

    assert not any(data[end_mark:])


def test_a_header_with_a_changed_byte_is_refused():
    data = bytearray(small_tar())
    for position in range(RECORD):
        data[position] ^= 0xFF
        with pytest.raises(ValueError, match=r"damaged|invalid literal"):
            list(read_headers(bytes(data)))
        data[position] ^= 0xFF


@given(st.integers(0, RECORD - 1), st.integers(0, 255))
@settings(deadline=None)
def test_a_header_with_a_changed_byte_is_never_read_otherwise(position, byte):
    data = small_tar()
    changed = data[:position] + bytes([byte]) + data[position + 1 :]
    try:
        members = list(read_headers(changed))
    except ValueError:
        return

    assert members == list(read_headers(data))


def test_a_damaged_checksum_is_called_damage():
    data = bytearray(small_tar())
    data[150] = ord("x")

    with pytest.raises(ValueError, match="tar header at byte 0 is damaged"):
        list(read_headers(bytes(data)))


@pytest.mark.parametrize("length", [99, 100, 101, 150, 180])
def test_a_long_name_is_put_together_from_its_prefix(length):
    name = "folder/" * 12
    name += "x" * (length - len(name))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    (found,) = read_headers(out.getvalue())

    assert found.name == name
    assert found.data(out.getvalue()) == b"abc"


def test_folders_and_links_are_not_files():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind in [("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("file", tarfile.REGTYPE)]:
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)

    assert [member.name for member in read_headers(out.getvalue())] == ["file"]


def test_what_is_not_a_tar_is_refused():
    with pytest.raises(ValueError, match="damaged"):
        list(read_headers(b"0" * 10_240))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def archive_of(files, form, kinds=(), pax_headers=None):
    """What Python's tarfile writes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=pax_headers) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in kinds:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "x" * 150
            archive.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(st.lists(st.tuples(PATHS, st.binary(max_size=1200)), max_size=4))
def test_names_of_any_length_and_letters_are_read_as_pythons_tarfile_reads_them(form, files):
    data = archive_of(files, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    found = list(read_headers(data))

    assert [(member.name.rstrip("/"), *member[1:]) for member in found] == expected
    assert [member.data(data) for member in found] == [content for _, content in files]


def test_the_headers_of_all_members_and_the_names_of_links_are_passed_over():
    links = [("link", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE), ("pipe", tarfile.FIFOTYPE)]
    for form in FORMATS.values():
        data = archive_of([("a.png", b"1")], form, links, {"comment": "of all"}) + b""
        more = archive_of([("b" * 200, b"2")], form)

        assert [member.name for member in read_headers(data)] == ["a.png"]
        assert [
            member.name for member in read_headers(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % RECORD) + more)
        ][-1] == "b" * 200


def with_header(data, start, stop, field):
    """The first header with another field, and the checksum that belongs to it."""
    header = bytearray(data[:RECORD])
    header[start:stop] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[RECORD:]


def test_a_size_in_base_256_is_read():
    data = with_header(small_tar(), 124, 136, b"\x80" + (700).to_bytes(11))
    first = next(iter(read_headers(small_tar())))
    big = with_header(small_tar(), 124, 136, b"\x80" + (first.num_bytes).to_bytes(11))

    assert list(read_headers(big)) == list(read_headers(small_tar()))
    assert next(read_headers(data)).num_bytes == 700


@pytest.mark.parametrize("size", [b"-0000001000\0", b"\xff" * 12, b"0x000000010\0", b"00000_00010\0", b"00000000018\0"])
def test_a_size_that_is_no_size_is_refused_and_never_followed(size):
    with pytest.raises(ValueError, match="tar header at byte 0 is damaged: it has no readable size"):
        list(read_headers(with_header(small_tar(), 124, 136, size)))


def test_the_size_of_a_large_file_is_that_of_its_extended_header():
    """As GNU tar writes files of 8 GB and more: the header's own field is zero."""
    data = archive_of([("folder/" + "x" * 120, b"a" * 700), ("next", b"b")], tarfile.PAX_FORMAT)
    record = b"12 size=700\n"
    extended = with_header(data, 124, 136, b"%011o\0" % len(record))[:RECORD] + record.ljust(RECORD, b"\0")
    own = with_header(data[2 * RECORD :], 124, 136, b"%011o\0" % 0)
    found = list(read_headers(extended + own))

    assert [member.num_bytes for member in found] == [700, 1]
    assert found[1].name == "next"


def test_what_an_extended_header_says_is_of_one_member_only():
    data = archive_of([("x" * 120, b"a"), ("next", b"b"), ("y" * 130, b"c"), ("last", b"d")], tarfile.PAX_FORMAT)

    assert [member.name for member in read_headers(data)] == ["x" * 120, "next", "y" * 130, "last"]


@pytest.mark.parametrize("record", [b"99 path=short\n", b"x path=a\n", b"0 path=a\n", b"8 path=a\n", b"12 size=-12\n"])
def test_an_extended_header_that_cannot_be_read_is_refused(record):
    data = archive_of([("x" * 120, b"a")], tarfile.PAX_FORMAT)
    start = with_header(data, 124, 136, b"%011o\0" % len(record))[:RECORD]

    with pytest.raises(ValueError, match="tar header at byte 0 is damaged: an extended header that cannot be read"):
        list(read_headers(start + record.ljust(RECORD, b"\0") + data[2 * RECORD :]))


def test_an_extended_header_too_large_to_be_one_is_not_read():
    data = with_header(archive_of([("x" * 120, b"a")], tarfile.PAX_FORMAT), 124, 136, b"%011o\0" % (1 << 21))

    with pytest.raises(ValueError, match="an extended header of 2097152 bytes"):
        list(read_headers(data + bytes(1 << 21)))


def test_a_sparse_file_is_refused_as_its_data_are_not_its_bytes():
    with pytest.raises(ValueError, match="sparse"):
        list(read_headers(with_header(small_tar(), 156, 157, b"S")))


def test_a_link_has_no_data_whatever_size_it_gives():
    data = with_header(small_tar(), 156, 157, b"1")
    after = data[:RECORD] + data[next(read_headers(small_tar())).end :]

    assert len(list(read_headers(after))) == len(list(read_headers(small_tar()))) - 1


def test_the_place_of_the_prefix_is_not_read_in_gnus_own_format():
    """Where it keeps times of access and change (tar --incremental)."""
    data = with_header(archive_of([("a.png", b"1")], tarfile.GNU_FORMAT), 345, 357, b"14720000000\0")

    assert [member.name for member in read_headers(data)] == ["a.png"]


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def test_walking_reads_headers_only():
    samples = numbered([{"png": b"x" * 100_000, "cls": "1"} for _ in range(20)])
    stream = Counted(write_tar(samples))
    found = list(walk_tar(stream))

    assert len(found) == 40
    assert stream.num_bytes == 41 * RECORD


def test_a_stream_may_be_read_while_it_is_walked():
    data = small_tar()
    stream = io.BytesIO(data)
    contents = []
    for member in walk_tar(stream):
        stream.seek(member.offset)
        contents.append(stream.read(member.num_bytes))

    assert contents == [member.data(data) for member in read_headers(data)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000.png", ("000", "png")),
        ("a/b.c/000.PNG", ("a/b.c/000", "png")),
        ("000.seg.png", ("000", "seg.png")),
        ("a/000", ("a/000", "")),
        (".hidden.png", (".hidden.png", "")),
        ("__meta__/x.json", ("__meta__/x.json", "")),
        ("./000.cls", ("./000", "cls")),
    ],
)
def test_a_name_is_split_at_the_first_dot_of_its_base_name(name, expected):
    assert split_key(name) == expected


@given(PATHS)
def test_webdataset_splits_every_name_in_the_same_way(name):
    key, extension = webdataset.tariterators.base_plus_ext(name)
    found = split_key(name)

    if key is None or name.startswith("__"):
        assert found in ((name, ""), (key, (extension or "").lower()))
    else:
        assert found == (key, extension.lower())


def test_samples_are_runs_of_one_key():
    names = ["a.png", "a.cls", "README", "b.png", "a.json", "a.txt"]
    groups = group_samples(Member(name, 0, 0) for name in names)

    assert [(key, [extension for extension, _ in members]) for key, members in groups] == [
        ("a", ["png", "cls"]),
        ("b", ["png"]),
        ("a", ["json", "txt"]),
    ]


@pytest.mark.parametrize(
    ("text", "label"),
    [(b"7", 7), (b" 12\n", 12), (b"007", 7), (b"", None), (b"-1", None), (b"1.5", None), ("٣".encode(), None)],
)
def test_a_label_is_one_whole_number(text, label):
    sample = Sample("k", [("cls", Member("k.cls", 3, len(text)))])
    if label is not None:
        assert sample.label(b"..." + text) == label
        return

    with pytest.raises(ValueError, match="sample k has a label that is not one whole number"):
        sample.label(b"..." + text)


def test_a_name_in_another_encoding_does_not_stop_the_reading():
    data = with_header(archive_of([("xx.png", b"1")], tarfile.USTAR_FORMAT), 0, 2, b"\xe9\xe8")

    assert [member.name for member in read_headers(data)] == ["\N{REPLACEMENT CHARACTER}" * 2 + ".png"]
