import hashlib
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from diffusion.data.append import check_appendable, known_of
from diffusion.data.duplicates import find_duplicates, hash_inputs
from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import commit_plan, delete_from, open_shard_set
from diffusion.data.shards import make_shard
from diffusion.files import Folder


@pytest.fixture
def config(tmp_path, write_pictures):
    for number, name in enumerate(("bee", "cat")):
        write_pictures(tmp_path / "source" / name, 40, seed=number)
    (tmp_path / "source" / "bee" / "bad.png").write_text("no picture yet")
    (tmp_path / "source" / "bee" / "worse.png").write_text("no picture ever")
    return ShardConfig(
        source=(str(tmp_path / "source"),),
        image_size=8,
        samples_per_shard=64,
        val_fraction=0.2,
        max_reject_fraction=0.1,
    )


def made(config, folder):
    plan = make_plan(config, folder)
    return commit_plan(plan, [make_shard(plan, shard, folder) for shard in plan.shards], folder)


def appended(config, folder):
    old = open_shard_set(folder)
    check_appendable(config, old)
    delete_from(folder, known_of(old).num_shards)
    plan = make_plan(config, folder, known_of(old))
    if config.dedupe:
        for shard in plan.shards:
            hash_inputs(plan, shard, folder)
        find_duplicates(plan, 0, folder)
    return commit_plan(plan, [make_shard(plan, shard, folder) for shard in plan.shards], folder, old)


def table(shards, name):
    return pq.read_table(f"{shards.folder.path}/{name}.parquet").to_pylist()


def tars(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_what_is_new_is_added_and_what_was_there_stays_byte_for_byte(config, tmp_path, write_pictures):
    old = made(config, Folder(tmp_path / "set"))
    before = tars(tmp_path / "set")
    write_pictures(tmp_path / "source" / "cat" / "more", 100, seed=5)
    new = appended(config, Folder(tmp_path / "set"))
    names = [row["source"] for row in table(new, "manifest")]

    assert before.items() < tars(tmp_path / "set").items()
    assert {tar.name: tar.sha256 for tar in new.tars} == tars(tmp_path / "set")
    assert new.digest != old.digest
    assert len(names) == len(set(names)) == 180
    assert len({row["key"] for row in table(new, "manifest")}) == 180
    assert new.num_samples("train") + new.num_samples("val") == 180


def test_what_was_refused_before_is_tried_again(config, tmp_path):
    old = made(config, Folder(tmp_path / "set"))
    shutil.copy(tmp_path / "source" / "bee" / "0000.png", tmp_path / "source" / "bee" / "bad.png")
    new = appended(config, Folder(tmp_path / "set"))

    assert old.rejects == {"unknown_format": 2}
    assert new.rejects == {"unknown_format": 1}
    assert [row["source"] for row in table(new, "rejects")] == ["bee/worse.png"]
    assert "bee/bad.png" in {row["source"] for row in table(new, "manifest")}


def test_with_nothing_new_the_digest_stays(config, tmp_path):
    old = made(config, Folder(tmp_path / "set"))
    before = tars(tmp_path / "set")

    assert appended(config, Folder(tmp_path / "set")).digest == old.digest
    assert tars(tmp_path / "set") == before


def test_labels_keep_their_meaning_when_a_class_is_new(config, tmp_path, write_pictures):
    made(config, Folder(tmp_path / "set"))
    write_pictures(tmp_path / "source" / "ant", 10, seed=7)
    new = appended(config, Folder(tmp_path / "set"))

    assert new.classes == ["bee", "cat", "ant"]
    assert all(new.classes[row["label"]] == row["source"].split("/")[0] for row in table(new, "manifest"))


def test_another_folder_can_be_added_even_if_its_files_have_the_same_names(config, tmp_path, write_pictures):
    made(config, Folder(tmp_path / "set"))
    write_pictures(tmp_path / "second" / "bee", 40, seed=9)
    both = replace(config, source=(*config.source, str(tmp_path / "second")))
    new = appended(both, Folder(tmp_path / "set"))
    names = {row["source"] for row in table(new, "manifest")}

    assert len(names) == 120
    assert {"bee/0000.png", "1//bee/0000.png"} <= names
    assert new.config["source"] == list(both.source)


def test_a_content_that_the_set_has_is_not_added_again_with_dedupe(config, tmp_path):
    config = replace(config, dedupe=True, max_reject_fraction=0.1)
    folder = Folder(tmp_path / "set")
    plan = make_plan(config, folder)
    for shard in plan.shards:
        hash_inputs(plan, shard, folder)
    find_duplicates(plan, 0, folder)
    commit_plan(plan, [make_shard(plan, shard, folder) for shard in plan.shards], folder)
    shutil.copy(tmp_path / "source" / "cat" / "0007.png", tmp_path / "source" / "cat" / "seven.png")
    new = appended(config, folder)

    assert [(r["source"], r["detail"]) for r in table(new, "rejects") if r["reason"] == "duplicate"] == [
        ("cat/seven.png", "the same bytes as cat/0007.png")
    ]


def test_an_append_that_was_cut_off_begins_anew_and_leaves_the_old_shards(config, tmp_path, write_pictures):
    made(config, Folder(tmp_path / "set"))
    before = tars(tmp_path / "set")
    write_pictures(tmp_path / "source" / "cat" / "more", 100, seed=5)
    folder = Folder(tmp_path / "set")
    plan = make_plan(config, folder, known_of(open_shard_set(folder)))
    make_shard(plan, plan.first_shard, folder)

    assert {tar.name for tar in open_shard_set(folder).tars} == before.keys()
    whole = appended(config, folder)
    assert before.items() < tars(tmp_path / "set").items()
    assert whole.num_samples("train") + whole.num_samples("val") == 180


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 16}, "image_size is another"),
        ({"seed": 1, "val_fraction": 0.5}, "val_fraction, seed are another"),
        ({"source": ("elsewhere",)}, "source must begin with those of the set, .*source, got elsewhere"),
    ],
)
def test_other_settings_cannot_be_appended(change, message, config, tmp_path):
    shards = made(config, Folder(tmp_path / "set"))

    with pytest.raises(ValueError, match=message):
        check_appendable(replace(config, **change), shards)
