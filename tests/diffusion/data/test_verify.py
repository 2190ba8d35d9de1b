import hashlib
import io
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion.data.seal import manifest_parts, seal_of
from diffusion.data.shard_set import digest_of, open_shard_set
from diffusion.data.shards import TarStats
from diffusion.data.tar import RECORD, group_samples, read_headers, write_tar
from diffusion.data.verify import check_dataset, check_listing, check_shard, claims, explain
from diffusion.files import Folder

VERIFIED = ("*.tar", "manifest.parquet/*", "dataset.json")


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory, write_pictures, make_set):
    """Two classes in three shards, each with both splits."""
    folder = tmp_path_factory.mktemp("verified")
    for label, name in enumerate(("cat", "dog")):
        write_pictures(folder / "source" / name, 96, seed=label)
    return make_set(folder / "source", folder / "set", val_fraction=0.3)


@pytest.fixture
def copy(shard_set, tmp_path):
    """The folder of a copy, to be damaged."""
    return Path(shutil.copytree(shard_set.folder.path, tmp_path / "copy"))


def files_of(folder):
    return [path for pattern in VERIFIED for path in sorted(folder.glob(pattern))]


def differences(folder, deep=False):
    """All that a verification finds, one shard after the other."""
    folder = Folder(folder)
    if found := check_dataset(folder):
        return found
    shards = open_shard_set(folder)
    of_shards = [difference for claim in claims(shards) for difference in check_shard(folder, claim, deep)]
    return [*check_listing(shards), *of_shards]


def line(folder, deep=False):
    """What `ddpm verify` would say, without the folder."""
    found = differences(folder, deep)
    if found[0].file == "dataset.json":
        return f"{found[0].file} {found[0].what}"
    return explain(open_shard_set(Folder(folder)), found).replace(f"{folder}/", "")


@contextmanager
def holding(path, data):
    """The file with other bytes, for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(data, position, mask=1):
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def reseal(folder):
    """Make dataset.json vouch for what is there: what is then found is not found by any sha256."""
    path = folder / "dataset.json"
    value = json.loads(path.read_text())
    for tar in value["tars"]:
        data = (folder / tar["name"]).read_bytes()
        tar |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    value["parts"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest_parts(Folder(folder))
    }
    value["digest"] = digest_of(TarStats(**tar) for tar in value["tars"])
    value["seal"] = seal_of(value)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def change_rows(folder, change, part="part-000001.parquet"):
    path = folder / "manifest.parquet" / part
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)


def rows_of(shard_set, name):
    tar = next(tar for tar in shard_set.tars if tar.name == name)
    return shard_set.manifest(tar, ["key", "offset", "num_bytes", "label"]).to_pylist()


def test_a_good_set_has_no_difference(shard_set):
    assert len(shard_set.tars) == 6
    assert differences(shard_set.folder.path) == []
    assert differences(shard_set.folder.path, deep=True) == []


def test_a_set_that_was_moved_has_no_difference(copy):
    assert differences(copy, deep=True) == []


@given(st.data())
@settings(max_examples=300)
def test_any_flipped_byte_of_any_file_is_found(shard_set, data):
    path = data.draw(st.sampled_from(files_of(Path(shard_set.folder.path))), label="file")
    before = path.read_bytes()
    position = data.draw(st.integers(0, len(before) - 1), label="position")
    mask = data.draw(st.integers(1, 255), label="mask")
    with holding(path, flipped(before, position, mask)):
        found = differences(shard_set.folder.path)

    assert [difference.file for difference in found] == [str(path.relative_to(shard_set.folder.path))]


@given(st.data())
@settings(max_examples=200)
def test_any_file_cut_anywhere_is_found(shard_set, data):
    path = data.draw(st.sampled_from(files_of(Path(shard_set.folder.path))), label="file")
    before = path.read_bytes()
    length = data.draw(st.integers(0, len(before) - 1), label="length")
    with holding(path, before[:length]):
        found = differences(shard_set.folder.path)

    assert [difference.file for difference in found] == [str(path.relative_to(shard_set.folder.path))]


def test_every_single_byte_of_dataset_json_counts(shard_set):
    path = Path(shard_set.folder.path) / "dataset.json"
    before = path.read_bytes()
    for position in range(len(before)):
        with holding(path, flipped(before, position)):
            assert check_dataset(shard_set.folder), (position, before[position])


@given(st.data())
@settings(max_examples=200)
def test_a_flipped_byte_of_a_tar_is_placed_where_it_is(shard_set, data):
    tar = data.draw(st.sampled_from(shard_set.tars), label="tar")
    path = Path(shard_set.folder.at(tar.name))
    before = path.read_bytes()
    position = data.draw(st.integers(0, len(before) - 1), label="position")
    inside = [row for row in rows_of(shard_set, tar.name) if 0 <= position - row["offset"] < row["num_bytes"]]
    members = list(read_headers(before))
    header = [member for member in members if -RECORD <= position - member.offset < 0]
    padding = [m for m in members if m.offset + m.num_bytes <= position < m.end] or position >= members[-1].end
    with holding(path, flipped(before, position)):
        (found,) = differences(shard_set.folder.path)

    if inside:
        expected = f"sample {inside[0]['key']}: its picture, at byte {inside[0]['offset']}, does not have the sha256"
    elif header:
        expected = f"tar header at byte {header[0].offset - RECORD} is damaged"
    elif padding and not members[-1].end <= position < members[-1].end + RECORD:
        expected = f"byte {position}, in the padding after"
    elif padding:  # the mark of the end, which then reads as a header
        expected = f"tar header at byte {members[-1].end} is damaged"
    else:
        expected = "label"
    assert expected in found.what


def flip_a_picture(folder, tar, row):
    rewrite(folder / tar, lambda data: flipped(data, row["offset"] + 30))


def flip_a_header(folder, tar, row):
    rewrite(folder / tar, lambda data: flipped(data, row["offset"] - RECORD + 3))


def flip_a_labels_header(folder, tar, row):
    end = row["offset"] + -(-row["num_bytes"] // RECORD) * RECORD
    rewrite(
        folder / tar, lambda data: flipped(data, end + 3)
    )  # that of the next sample, which comes before its picture


def flip_padding(folder, tar, row):
    rewrite(folder / tar, lambda data: flipped(data, row["offset"] + row["num_bytes"]))


def change_a_label(folder, tar, row):
    rewrite(folder / tar, lambda data: flipped(data, row["offset"] - 2 * RECORD))  # it comes before the picture


def cut_at_a_header(folder, tar, row):
    rewrite(folder / tar, lambda data: data[: row["offset"] - RECORD])


def cut_inside_a_picture(folder, tar, row):
    rewrite(folder / tar, lambda data: data[: row["offset"] + 30])


def cut_in_the_end_mark(folder, tar, row):
    rewrite(folder / tar, lambda data: data[:-RECORD])


def lengthen(folder, tar, row):
    rewrite(folder / tar, lambda data: data + b"x")


def empty(folder, tar, row):
    (folder / tar).write_bytes(b"")


def remove(folder, tar, row):
    (folder / tar).unlink()


def put_another_in_its_place(folder, tar, row):
    shutil.copy(folder / "train-000002.tar", folder / tar)


def drop_a_sample(folder, tar, row):
    data = (folder / tar).read_bytes()
    kept = [sample for sample in group_samples(read_headers(data)) if sample.key != row["key"]]
    entries = [{e: m.data(data) for e, m in sample.members} | {"__key__": sample.key} for sample in kept]
    (folder / tar).write_bytes(write_tar(entries))


def remove_a_part(folder, tar, row):
    (folder / "manifest.parquet/part-000001.parquet").unlink()


def change_a_part(folder, tar, row):
    change_rows(folder, lambda rows: rows[0].update(source="another"))


def truncate_a_part(folder, tar, row):
    rewrite(folder / "manifest.parquet/part-000001.parquet", lambda data: data[:-100])


TAR, PART = r"^train-000001\.tar ", r"^manifest\.parquet/part-000001\.parquet "
DAMAGES = {
    flip_a_picture: TAR + r"was changed: sample {key}: its picture, at byte {offset}, does not have the sha256",
    flip_a_header: TAR + r"was changed: tar header at byte {header} is damaged \(at sample {key}\)",
    flip_a_labels_header: TAR + r"was changed: tar header at byte \d+ is damaged \(after the picture of sample {key}\)",
    flip_padding: TAR + r"was changed: byte {end}, in the padding after {key}\.png, is not zero",
    change_a_label: TAR + r"was changed: sample {key}, at byte {offset}: its label is \d, in the manifest \d",
    cut_at_a_header: TAR + r"was changed: has {header} bytes instead of \d+: tar is cut short at byte {header}: it has "
    r"no end-of-archive mark \(at sample {key}\)",
    cut_inside_a_picture: TAR + r"was changed: has \d+ bytes .*: tar is cut short inside {key}\.png",
    cut_in_the_end_mark: TAR + r"was changed: has \d+ bytes instead of \d+: a byte outside of pictures",
    lengthen: TAR + r"was changed: has \d+ bytes instead of \d+: byte \d+, in the padding after its end",
    empty: TAR + r"was changed: has 0 bytes instead of \d+: tar is cut short at byte 0",
    remove: TAR + "is missing; restore it from a copy",
    put_another_in_its_place: TAR + r"holds the bytes of train-000002\.tar",
    drop_a_sample: TAR + r"was changed: sample {key}, at byte \d+: its key is \d{{6}}-\d{{6}}, in the manifest {key}",
    remove_a_part: PART + "is missing",
    change_a_part: PART + r"was changed: it does not have the sha256 of dataset\.json",
    truncate_a_part: PART + r"was changed: it does not have the sha256 of dataset\.json",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_kind_of_damage_is_named_with_its_place(damage, copy, shard_set):
    row = rows_of(shard_set, "train-000001.tar")[5]
    damage(copy, "train-000001.tar", row)
    place = {"header": row["offset"] - RECORD, "end": row["offset"] + row["num_bytes"]}
    said = line(copy)

    assert re.search(DAMAGES[damage].format(**row, **place), said), said
    assert said.endswith("(1 shard differs, 6 were committed)")
    assert "\n" not in said


def test_swapped_tars_are_named_by_what_they_hold(copy):
    first, second = (copy / f"train-00000{n}.tar" for n in (0, 2))
    first.rename(copy / "aside")
    second.rename(first)
    (copy / "aside").rename(second)
    said = line(copy)

    assert said.startswith("train-000000.tar holds the bytes of train-000002.tar; restore it from a copy")
    assert said.endswith("(2 shards differ, 6 were committed)")


@pytest.mark.parametrize("name", ["train-000003.tar", "a.tar", "manifest.parquet/part-000007.parquet"])
def test_what_the_set_does_not_know_is_named(name, copy):
    (copy / name).write_bytes(b"anything")

    assert line(copy).startswith(f"{name} is in the folder, and dataset.json does not know it; move it elsewhere")


def test_a_stray_file_beside_the_parts_is_not_made_one_of_them(copy):
    (copy / "manifest.parquet/stray.parquet").write_bytes(b"anything")

    assert line(copy).startswith("manifest.parquet/stray.parquet is in the folder")


def test_other_files_in_the_folder_are_nobodys_business(copy):
    (copy / "config.json").write_text("{}")
    (copy / "notes").mkdir()
    (copy / "notes/old.tar").write_bytes(b"")
    (copy / "manifest.parquet/.part.tmp").write_bytes(b"")

    assert differences(copy) == []


EDITS = {
    "counts": lambda value: value["counts"].update(train=7),
    "digest": lambda value: value.update(digest="0" * 32),
    "tar": lambda value: value["tars"][0].update(sha256="0" * 64),
    "fewer": lambda value: value["tars"].pop(),
    "class": lambda value: value["classes"].reverse(),
    "config": lambda value: value["config"].update(seed=5),
    "type": lambda value: value["tars"][0].update(num_samples="x"),
    "key": lambda value: value.pop("classes"),
    "seal": lambda value: value.pop("seal"),
    "version": lambda value: value.update(format_version=9),
}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("counts", "was edited: its counts are .*'train': 7.*, and those of its tars"),
        ("digest", "was edited: its digest is 00000000000000000000000000000000, and that of its tars"),
        ("tar", "was edited: its digest is"),
        ("fewer", "was edited: its counts are"),
        ("class", "was edited: .*its seal"),
        ("config", "was edited: .*its seal"),
        ("type", "is damaged"),
        ("key", "is damaged"),
        ("seal", "has no seal"),
        ("version", "format 9"),
    ],
)
def test_an_edited_dataset_json_is_named(edit, message, copy):
    value = json.loads((copy / "dataset.json").read_text())
    EDITS[edit](value)
    (copy / "dataset.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

    assert re.search(rf"^dataset\.json .*{message}", line(copy)), line(copy)


def test_another_layout_of_dataset_json_is_an_edit_too(copy):
    value = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps(value, sort_keys=True))

    assert "in other bytes" in line(copy)


def test_without_dataset_json_there_is_nothing_to_verify(copy):
    (copy / "dataset.json").unlink()

    with pytest.raises(FileNotFoundError, match="no finished shard set"):
        check_dataset(Folder(copy))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key", "another"),
        ("label", 7),
        ("offset", 1),
        ("num_bytes", 1),
        ("sha256", "0" * 64),
        ("shard", 9),
        ("width", 9),
        ("height", 9),
        ("split", "val"),
    ],
)
def test_a_set_that_was_committed_wrong_is_found_by_its_rows(column, value, copy):
    change_rows(copy, lambda rows: rows[3].update({column: value}))
    reseal(copy)

    assert line(copy).startswith("train-000001.tar ")
    assert {"sha256": "does not have the sha256 of the manifest", "split": "samples"}.get(column, column) in line(copy)


@pytest.mark.parametrize("change", [lambda rows: rows.pop(2), lambda rows: rows.append(rows[2])])
def test_rows_and_samples_must_be_as_many(change, copy):
    change_rows(copy, change)
    reseal(copy)

    assert "samples, and should have" in line(copy)


def test_the_first_difference_is_that_of_the_first_tar_whatever_the_order_of_the_tasks(copy):
    (copy / "train-000002.tar").unlink()
    (copy / "val-000000.tar").unlink()
    (copy / "manifest.parquet/part-000002.parquet").unlink()
    (copy / "train-000001x.tar").write_bytes(b"")
    shards = open_shard_set(Folder(copy))
    found = [(claim, check_shard(Folder(copy), claim)) for claim in claims(shards)]
    lines = {
        explain(shards, [*extra, *(difference for _, some in order for difference in some), *others])
        for order in (found, found[::-1])
        for extra, others in [(check_listing(shards), []), ([], check_listing(shards))]
    }

    assert lines == {
        f"{copy}/train-000001x.tar is in the folder, and dataset.json does not know it; move it elsewhere "
        f"(3 shards differ, 6 were committed)"
    }


def repaint(folder, name, encode):
    """Give the fifth sample of a tar another file, and make the set vouch for it."""
    data = (folder / name).read_bytes()
    entries = []
    for nth, sample in enumerate(group_samples(read_headers(data))):
        entry = {extension: member.data(data) for extension, member in sample.members}
        entries.append({"__key__": sample.key, **entry, **({"png": encode(entry["png"])} if nth == 5 else {})})
    (folder / name).write_bytes(write_tar(entries))
    after = (folder / name).read_bytes()
    places = {sample.key: sample.picture[1] for sample in group_samples(read_headers(after))}

    def follow(rows):
        for row in rows:
            if row["key"] in places:
                member = places[row["key"]]
                sha256 = hashlib.sha256(member.data(after)).hexdigest()
                row |= {"offset": member.offset, "num_bytes": member.num_bytes, "sha256": sha256}

    change_rows(folder, follow)
    reseal(folder)


def resized(png):
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(out, format="PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda png: png[:60], "cannot be decoded"),
        (lambda png: b"no picture", "cannot be decoded"),
        (resized, "is 8x4 in 3 channels, where the set's are 8x8 in 3 channels"),
    ],
)
def test_only_a_deep_verification_decodes_the_pictures(encode, message, copy, shard_set):
    repaint(copy, "train-000001.tar", encode)
    key = rows_of(shard_set, "train-000001.tar")[5]["key"]

    assert differences(copy) == []
    assert f"train-000001.tar sample {key}: its picture, at byte" in line(copy, deep=True)
    assert message in line(copy, deep=True)
