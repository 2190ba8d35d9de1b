import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion.data.sources import check_source, open_source
from diffusion.data.sources.kinds import TABLES

FILES = [b"first", b"second", b"", b"a longer fourth", b"fifth"]
NAMES = ["cat", "dog", "eel"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(files=FILES, labels=None, label_type=None, **metadata):
    """A plain table: binary, and labels of a type if there are any."""
    columns = {"image": pa.array(files, pa.binary())}
    if labels is not None:
        columns["label"] = pa.array(labels, label_type)
    return pa.table(columns).replace_schema_metadata(metadata)


def hugging_face(files=FILES, labels=(0, 2, 1, None, -1), names=NAMES):
    """As `datasets` writes a set of Image and ClassLabel: arrow_writer.py, ArrowWriter._build_metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    rows = [None if file is None else {"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)]
    columns = {"image": pa.array(rows, IMAGE), "label": pa.array(labels[: len(files)], pa.int64())}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.fixture
def source_of(tmp_path):
    """A function that writes these tables, two rows to a row group, and opens their folder as a source."""

    def make(*tables, columns=(), **options):
        for number, rows in enumerate(tables):
            pq.write_table(rows, tmp_path / f"{number}.parquet", **{"row_group_size": 2, **options})
        return open_source([str(tmp_path)], *columns)

    return make


def items(source):
    return [item for block in source.blocks() for item in block]


def contents(source):
    return [content for block in source.blocks() for content in source.read(block)]


@pytest.mark.parametrize(
    "rows",
    [
        table(),
        table().cast(pa.schema([("image", pa.large_binary())])),
        hugging_face(),
        table(labels=list("abcde"), label_type=pa.dictionary(pa.int8(), pa.string())),
    ],
)
@pytest.mark.parametrize("row_group_size", [1, 2, 5, 100])
def test_every_row_is_listed_once_and_reads_back_byte_for_byte(rows, row_group_size, source_of):
    source = source_of(rows, rows, row_group_size=row_group_size)

    assert [item.source for item in items(source)] == [f"{n}.parquet/{i:06d}" for n in range(2) for i in range(5)]
    assert contents(source) == FILES * 2
    assert len(list(source.blocks())) == 2 * -(-5 // row_group_size)


def test_a_block_is_a_row_group_and_may_be_read_in_part(source_of):
    files = [bytes([i % 256]) * (i % 7) for i in range(500)]
    source = source_of(table(files), row_group_size=300)
    blocks = list(source.blocks())

    assert [len(block) for block in blocks] == [300, 200]
    assert list(source.read(blocks[1][1::3])) == files[301::3]


@pytest.mark.parametrize(
    ("labels", "label_type", "expected"),
    [
        ([3, 10, 3, None, -1], pa.int64(), ["3", "10", "3", None, None]),
        ([3, 10, 3, None, 0], pa.uint8(), ["3", "10", "3", None, "0"]),
        (["b", "a", "b", None, ""], pa.string(), ["b", "a", "b", None, None]),
        (["b", "a", "b", None, "a"], pa.large_string(), ["b", "a", "b", None, "a"]),
        (["b", "a", "b", None, "a"], pa.dictionary(pa.int32(), pa.string()), ["b", "a", "b", None, "a"]),
        ([None] * 5, pa.null(), [None] * 5),
        (None, None, [None] * 5),
    ],
)
def test_labels_are_whole_numbers_or_text_if_there_are_any(labels, label_type, expected, source_of):
    source = source_of(table(labels=labels, label_type=label_type))

    assert [item.label for item in items(source)] == expected
    assert source.classes is None
    assert contents(source) == FILES


def test_class_labels_of_hugging_face_are_the_classes_by_number(source_of):
    source = source_of(hugging_face(), hugging_face())

    assert source.classes == NAMES
    assert [item.label for item in items(source)] == ["cat", "eel", "dog", None, None] * 2


def test_tables_of_other_classes_do_not_mix(source_of):
    source = source_of(hugging_face(), hugging_face(names=["dog", "cat", "eel"]))

    with pytest.raises(
        ValueError, match=r"must declare the same classes; .*1.parquet has \['dog', .*, the first \['cat"
    ):
        items(source)


def test_a_number_that_no_class_has_is_refused(source_of):
    with pytest.raises(ValueError, match=r"column 'label' of .*0.parquet: .* one of 3 classes, from 0 on, got 3"):
        items(source_of(hugging_face(labels=(0, 1, 2, 3, 0))))


@pytest.mark.parametrize(
    "said", ["no JSON", "[]", '{"info": {"features": {"label": {"_type": "Value"}}}}', '{"info": 1}']
)
def test_what_else_is_said_beside_a_schema_is_no_class(said, source_of):
    source = source_of(table(labels=[1, 0, 1, 0, 1], huggingface=said))

    assert source.classes is None
    assert {item.label for item in items(source)} == {"0", "1"}


def test_other_columns_may_be_named(source_of):
    rows = pa.table({"png": FILES, "image": [1] * 5, "label": [0] * 5, "kind": list("abcde"), "a.b": FILES})

    assert contents(source_of(rows, columns=("png", "kind"))) == FILES
    assert contents(source_of(rows, columns=("a.b", "kind"))) == FILES
    assert [item.label for item in items(source_of(rows, columns=("png", "kind")))] == list("abcde")
    assert [item.label for item in items(source_of(rows, columns=("png", "")))] == [None] * 5


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("img",), r"0.parquet has no column 'img', but image, label; give the one with images as image_column"),
        (
            ("label",),
            "column 'label' of .*0.parquet must hold image files, .*, and is of type double; give another as im",
        ),
        (
            ("image", "kind"),
            "0.parquet has no column 'kind', but image, label; give the one with labels as label_column",
        ),
        (
            ("image", "label"),
            "'label' of .*0.parquet must hold whole numbers or text, and is of type double; give anoth",
        ),
        (("image", "image"), "column 'image' of .* must hold whole numbers or text, and is of type binary"),
    ],
)
def test_columns_that_are_missing_or_of_another_type_are_refused(columns, message, source_of):
    source = source_of(table(labels=[0.5] * 5), columns=columns)

    with pytest.raises(ValueError, match=message):
        items(source)


def test_a_struct_without_bytes_is_no_image_column(source_of):
    with pytest.raises(ValueError, match=r"column 'image' of .* is of type struct<path: string>"):
        items(source_of(pa.table({"image": [{"path": "1.png"}]})))


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": "1.png"}])
def test_a_null_is_refused_alone(missing, source_of):
    rows = pa.table({"image": pa.array([{"bytes": b"1", "path": None}, missing, {"bytes": b"3", "path": ""}], IMAGE)})
    first, null, last = contents(source_of(rows))

    assert (first, last) == (b"1", b"3")
    assert (null.reason, null.detail) == ("unreadable", "the table holds no file here: it is null")


def test_a_file_over_the_limit_is_refused_alone(source_of, monkeypatch):
    monkeypatch.setattr("diffusion.data.sources.parquet.MAX_BYTES", 6)
    refused = contents(source_of(table()))

    assert [content if isinstance(content, bytes) else content.reason for content in refused] == [
        b"first", b"second", b"", "too_large", b"fifth",
    ]  # fmt: skip


def test_a_table_by_itself_is_a_source_and_its_rows_have_the_same_names_as_in_its_folder(source_of, tmp_path):
    folder = source_of(hugging_face())
    alone = open_source([str(tmp_path / "0.parquet")])

    assert list(alone.blocks()) == list(folder.blocks())
    assert alone.classes == NAMES
    assert contents(alone) == FILES
    check_source([str(tmp_path / "0.parquet")])


def test_tables_lie_at_any_depth_and_other_files_beside_them_are_recorded(source_of, tmp_path):
    source = source_of(table(FILES[:1]))
    (tmp_path / "a.parquet").mkdir()  # Spark's way to write one table
    for name in ("a.parquet/part-0.parquet", "b/1.PARQUET"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(FILES[1:2]), tmp_path / name)
    (tmp_path / "README.md").touch()
    (tmp_path / ".cache.parquet").touch()
    listed = items(source)

    assert [item.source for item in listed] == [
        "0.parquet/000000", "README.md", "a.parquet/part-0.parquet/000000", "b/1.PARQUET/000000",
    ]  # fmt: skip
    assert [item.is_image for item in listed] == [True, False, True, True]
    assert [c if isinstance(c, bytes) else c.reason for c in contents(source)] == [
        b"first", "not_an_image_name", b"second", b"second",
    ]  # fmt: skip


def test_a_table_without_rows_has_no_inputs_but_its_classes(source_of):
    source = source_of(hugging_face(files=[]))

    assert items(source) == []
    assert source.classes == NAMES


def test_listing_reads_no_image(source_of, tmp_path):
    source = source_of(table([np.random.default_rng(0).bytes(100_000)], labels=[1]))
    path = tmp_path / "0.parquet"
    data = bytearray(path.read_bytes())
    data[1000:90_000] = bytes(89_000)
    path.write_bytes(data)

    assert [item.label for item in items(source)] == ["1"]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"PAR1", lambda data: data[:-5], lambda data: data[100:]]
)
def test_a_damaged_table_is_refused_when_it_is_listed(damage, source_of, tmp_path):
    source = source_of(table(), table())
    (tmp_path / "1.parquet").write_bytes(damage((tmp_path / "1.parquet").read_bytes()))

    with pytest.raises(ValueError, match=r"cannot read .*/1.parquet: .*; write or download it again"):
        items(source)


def test_a_link_to_no_table_is_refused_when_it_is_listed(source_of, tmp_path):
    source = source_of(table())
    (tmp_path / "1.parquet").symlink_to(tmp_path / "nowhere")

    with pytest.raises(ValueError, match=r"cannot read .*/1.parquet: .*; write or download it again"):
        items(source)


def test_a_damaged_row_group_is_refused_row_by_row_and_the_others_are_read(source_of, tmp_path):
    files = [np.random.default_rng(i).bytes(1000) for i in range(4)]
    source = source_of(
        table(files), compression="snappy", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    data = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "0.parquet").write_bytes(data.replace(files[1][400:600], bytes(200)))
    first, second, *others = contents(source)

    assert data.count(files[1][400:600]) == 1
    assert {first.reason, second.reason} == {"unreadable"}
    assert "0.parquet" in second.detail
    assert others == files[2:]


@pytest.mark.parametrize(
    "later",
    [
        table([b"other"] * 5, labels=list("baaaa")),
        table(FILES[:1], labels=["a"]),
        table(FILES, labels=[1] * 5),
        table(FILES),
        pa.table({"picture": FILES}),
        None,
    ],
)
def test_rows_of_a_table_that_was_exchanged_are_refused_unless_they_are_what_was_listed(later, source_of, tmp_path):
    source = source_of(table(labels=list("aaaaa")))
    blocks = list(source.blocks())
    (tmp_path / "0.parquet").unlink()
    if later is not None:
        source_of(later)
    read = [content for block in blocks for content in source.read(block)]

    assert read[0] == b"first" if later is not None and later.num_rows == 1 else read[0].reason == "unreadable"
    assert len(read) == 5
    assert all(content.reason == "unreadable" for content in read[1:] if not isinstance(content, bytes))
    assert not any(content in FILES for content in read[1:] if isinstance(content, bytes))


def test_where_the_storage_fails_the_error_is_the_storages(source_of, monkeypatch):
    source = source_of(table())
    (block, *_) = source.blocks()

    class Broken:
        def __getattr__(self, name):
            raise OSError("the connection was reset")

    monkeypatch.setattr(source.kinds[TABLES].folder, "fs", Broken())
    for use in (source.blocks, lambda: source.read(block)):
        with pytest.raises(OSError, match="the connection was reset"):
            list(use())


def test_every_row_is_a_sample_or_a_reject(write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "pictures", 40)
    files = [path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())]
    files[7:9] = [None, b"no picture"]
    (tmp_path / "in").mkdir()
    labels = [i % 3 for i in range(20)]
    for part, half in enumerate((files[:20], files[20:])):
        pq.write_table(hugging_face(half, labels), tmp_path / f"in/{part}.parquet", row_group_size=6)
    shards = make_set(tmp_path / "in", tmp_path / "set", max_reject_fraction=0.1, samples_per_shard=10)
    given = shards.folder.read_table("manifest.parquet", ["source", "label"]).to_pylist()
    refused = shards.folder.read_table("rejects.parquet").to_pylist()

    assert shards.classes == NAMES
    assert {row["source"]: row["reason"] for row in refused} == {
        "0.parquet/000007": "unreadable",
        "0.parquet/000008": "unknown_format",
    }
    assert sorted(row["source"] for row in given + refused) == [
        f"{n}.parquet/{i:06d}" for n in (0, 1) for i in range(20)
    ]
    assert all(row["label"] == int(row["source"][-2:]) % 3 for row in given)
