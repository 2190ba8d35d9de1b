import io
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.images import encode_png
from diffusion.data.tar import RECORD, read_headers, write_tar

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
