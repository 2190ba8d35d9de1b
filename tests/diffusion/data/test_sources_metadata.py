import json

import pytest

from diffusion.data.sources import open_source

HEAD = "file_name,label"


@pytest.fixture
def source_of(tmp_path):
    """A function that makes these files, of these texts, and opens the folder as a source."""

    def make(files, **columns):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return open_source([str(tmp_path)], **columns)

    return make


def lines(*rows):
    """Rows as JSONL."""
    return "\n".join(json.dumps(row) for row in rows)


def csv(*rows, head=HEAD):
    return "\n".join([head, *rows, ""])


def labels(source):
    return {item.source: item.label for block in source.blocks() for item in block}


def names(source):
    return [item.source for block in source.blocks() for item in block]


@pytest.mark.parametrize(
    "metadata",
    [
        {"metadata.csv": csv("a.png,cat", "b.png,dog")},
        {"metadata.csv": "\ufeff" + csv("cat,a.png", "dog,./b.png", head="label,file_name")},
        {"metadata.csv": csv("a.png,cat", '"b.png","dog"').replace("\n", "\r\n")},
        {"metadata.jsonl": lines({"file_name": "a.png", "label": "cat"}, {"label": "dog", "file_name": "b.png"})},
    ],
)
def test_metadata_gives_each_file_its_label_and_is_no_input_itself(metadata, source_of):
    source = source_of({"a.png": "", "b.png": "", **metadata})

    assert names(source) == ["a.png", "b.png"]
    assert labels(source) == {"a.png": "cat", "b.png": "dog"}
    assert source.classes is None


def test_whole_numbers_are_names_and_nothing_or_minus_1_is_no_label(source_of):
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate([10, 2, None, "", -1, "x y"])]
    source = source_of({"metadata.jsonl": lines(*rows), **{f"{i}.png": "" for i in range(6)}})

    assert list(labels(source).values()) == ["10", "2", None, None, None, "x y"]


def test_files_that_metadata_does_not_name_are_listed_without_a_label(source_of):
    source = source_of({"metadata.csv": csv("a.png,cat"), "a.png": "", "b.png": "", "notes.txt": ""})

    assert labels(source) == {"a.png": "cat", "b.png": None, "notes.txt": None}


def test_files_that_only_metadata_names_are_listed_to_be_refused(source_of):
    source = source_of({"metadata.csv": csv("lost.png,cat", "a.png,dog", "deep/lost.png,dog"), "a.png": "whole"})
    (block,) = source.blocks()
    contents = list(source.read(block))

    assert [(item.source, item.label) for item in block] == [
        ("a.png", "dog"),
        ("deep/lost.png", "dog"),
        ("lost.png", "cat"),
    ]
    assert contents[0] == b"whole"
    assert [content.reason for content in contents[1:]] == ["unreadable", "unreadable"]


def test_a_hidden_file_is_an_input_if_metadata_names_it(source_of):
    source = source_of({"metadata.csv": csv(".a.png,cat"), ".a.png": "hidden", ".b.png": ""})
    (block,) = source.blocks()

    assert [(item.source, item.label) for item in block] == [(".a.png", "cat")]
    assert list(source.read(block)) == [b"hidden"]


def test_with_metadata_at_the_top_subfolders_are_not_classes(source_of):
    metadata = csv("cat/a.png,tabby", "dog/deep/b.png,hound", "loose.png,none")
    source = source_of(
        {"metadata.csv": metadata, "cat/a.png": "", "cat/c.png": "", "dog/deep/b.png": "", "loose.png": ""}
    )

    assert labels(source) == {
        "cat/a.png": "tabby",
        "cat/c.png": None,
        "dog/deep/b.png": "hound",
        "loose.png": "none",
    }


def test_each_subfolder_may_have_metadata_of_its_own(source_of):
    source = source_of(
        {
            "test/metadata.csv": csv("1.png,dog", "lost.png,dog"),
            "test/1.png": "",
            "train/deep/1.png": "",
            "train/metadata.jsonl": lines({"file_name": "deep/1.png", "label": "cat"}),
            "extra/1.png": "",
            "README.md": "",
        }
    )

    assert names(source) == ["extra/1.png", "test/1.png", "test/lost.png", "train/deep/1.png", "README.md"]
    assert list(labels(source).values()) == [None, "dog", "dog", "cat", None]
    assert source.classes is None


def test_another_column_may_hold_the_labels(source_of):
    files = {"metadata.csv": csv("a.png,7,cat", head="file_name,label,kind"), "a.png": ""}

    assert labels(source_of(files, label_column="kind")) == {"a.png": "cat"}
    assert labels(source_of(files, label_column="")) == {"a.png": None}


def test_a_file_may_be_named_twice_with_one_label(source_of):
    source = source_of({"metadata.csv": csv("a.png,cat", "./a.png,cat"), "a.png": ""})

    assert names(source) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "", "it must begin with a line of column names, file_name among them"),
        (
            "metadata.csv",
            csv("a.png,1", head="path,label"),
            "line 2: there must be a column file_name; there are path,",
        ),
        ("metadata.csv", csv("a.png,1", head="file_name,kind"), "line 2: there is no column 'label', but file_name, k"),
        ("metadata.csv", csv(",1"), "line 2: file_name must be a path inside its folder, got ''"),
        ("metadata.csv", csv("../a.png,1"), r"line 2: file_name must be a path inside its folder, got '../a.png'"),
        ("metadata.csv", csv("/a.png,1"), "line 2: file_name must be a path inside its folder, got '/a.png'"),
        ("metadata.csv", csv("x/../../a.png,1"), "line 2: file_name must be a path inside its folder"),
        ("metadata.csv", csv("a.png,1", "a.png,2"), "line 3: a.png has two labels, 1 and 2; keep one"),
        ("metadata.csv", csv('"a.png,1'), "unexpected end of data"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 1}\n{"file', "line 2 is not JSON: "),
        ("metadata.jsonl", "[1]", r'line 1: must be an object like {"file_name": …}, got \[1\]'),
        ("metadata.jsonl", lines({"file_name": 3, "label": 1}), "line 1: file_name must be a path .*, got 3"),
        ("metadata.jsonl", lines({"file_name": "a\0.png", "label": 1}), "line 1: file_name must be a path"),
        ("metadata.jsonl", lines({"file_name": "a.png", "label": 1.5}), "line 1: a label must be text or a whole numb"),
        ("metadata.jsonl", lines({"file_name": "a.png", "label": True}), "line 1: a label must be .*, got True"),
    ],
)
def test_metadata_that_cannot_be_understood_is_refused_with_its_line(name, text, message, source_of):
    source = source_of({name: text, "a.png": ""})

    with pytest.raises(ValueError, match=rf"cannot use .*/{name}: .*{message}"):
        list(source.blocks())


def test_metadata_that_is_not_utf_8_is_refused(source_of, tmp_path):
    source = source_of({"a.png": ""})
    (tmp_path / "metadata.csv").write_bytes(b"file_name,label\n\xff.png,1\n")

    with pytest.raises(ValueError, match=r"cannot use .*metadata.csv: .*utf-8"):
        list(source.blocks())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["metadata.csv", "metadata.jsonl"], "has both metadata.csv and metadata.jsonl; keep one"),
        (["metadata.csv", "train/metadata.csv"], "has train/metadata.csv under metadata.csv; keep one"),
        (["cat/deep/metadata.csv"], "metadata must be in .*, but .* has cat/deep/metadata.csv; move it up"),
        (["a/metadata.csv", "cat/deep/metadata.csv"], "metadata must be in .* has cat/deep/metadata.csv; move it up"),
    ],
)
def test_metadata_whose_reach_is_not_clear_is_refused(files, message, source_of):
    source = source_of({"cat/1.png": "", **dict.fromkeys(files, HEAD)})

    with pytest.raises(ValueError, match=message):
        list(source.blocks())


def test_a_change_of_a_label_is_another_listing_and_a_change_of_a_comment_is_not(source_of):
    source_of({"a.png": ""})

    def listed(row):
        return list(source_of({"metadata.csv": csv(row, head=f"{HEAD},text")}).blocks())

    assert listed("a.png,cat,x") == listed("a.png,cat,y") != listed("a.png,dog,x")


def test_every_file_and_every_name_of_a_metadata_set_is_a_sample_or_a_reject(
    source_of, write_pictures, make_set, tmp_path
):
    (tmp_path / "in").mkdir()
    write_pictures(tmp_path / "in/pictures", 20)
    rows = [f"pictures/{i:04d}.png,{i % 3}" for i in range(15)] + ["lost.png,1"]
    (tmp_path / "in/metadata.csv").write_text(csv(*rows))
    shards = make_set(tmp_path / "in", tmp_path / "set", max_reject_fraction=0.1)
    table = shards.folder.read_table("manifest.parquet", ["source", "label"]).to_pydict()
    given = dict(zip(table["source"], table["label"], strict=True))

    assert shards.classes == ["0", "1", "2"]
    assert given == {f"pictures/{i:04d}.png": i % 3 if i < 15 else -1 for i in range(20)}
    assert shards.rejects == {"unreadable": 1}
