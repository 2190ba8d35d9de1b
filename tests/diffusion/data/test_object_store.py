"""The same shard set and checkpoints in an object store: a real S3 server over HTTP, on the loopback interface."""

import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diffusion.checkpoint import load_checkpoint, save_checkpoint
from diffusion.data.loader import SampleReader
from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import commit_plan, open_shard_set
from diffusion.data.shards import make_shard
from diffusion.data.sources import check_source, open_source
from diffusion.files import Folder

CONFIG = ShardConfig(image_size=8, samples_per_shard=512)


def made(folder):
    plan = make_plan(CONFIG, folder)
    return commit_plan(plan, [make_shard(plan, shard, folder) for shard in plan.shards], folder)


def test_a_shard_set_has_the_same_digest_and_samples_there_as_on_a_disk(store, tmp_path):
    there, here = made(Folder(store) / "data"), made(Folder(tmp_path))
    positions = [0, 5, 1000]

    assert there.digest == here.digest == open_shard_set(Folder(store) / "data").digest
    assert (SampleReader(there).read(positions)[0] == SampleReader(here).read(positions)[0]).all()


def test_a_checkpoint_survives_the_way_there_and_back(store, tmp_path):
    from diffusion.checkpoint import Checkpoint

    folder = Folder(store) / "train/attempt-1"
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    save_checkpoint(folder.write, Checkpoint(7, tensors, [tensors], tensors, {}))
    back = load_checkpoint(folder.read)

    assert back.step == 7
    assert back.model["weight"].equal(tensors["weight"])


def test_a_uri_keeps_its_options_on_the_way_down_and_up(store):
    folder = Folder(store) / "configs/run.json"

    assert folder.uri == store.replace("runs?", "runs/configs/run.json?")
    assert (folder.name, folder.parent.uri) == ("run.json", (Folder(store) / "configs").uri)


def test_a_deleted_folder_is_gone_and_a_missing_one_is_empty(store):
    folder = Folder(store)
    folder.write("mortal/file", b"x")
    before = folder.names("mortal")
    folder.delete("mortal")

    assert before == ["file"]
    assert folder.names("mortal") == []
    assert not folder.exists("mortal/file")


def picture_folder(folder, pictures):
    for index, data in enumerate(pictures):
        folder.write(f"{index % 2}/{index:03d}.png", data)
    folder.write("0/notes.txt", b"notes")


def labelled_folder(folder, pictures):
    rows = [{"file_name": f"deep/{index:03d}.png", "label": index % 2} for index in range(len(pictures) + 1)]
    folder.write("metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    for index, data in enumerate(pictures):
        folder.write(f"deep/{index:03d}.png", data)


def tables(folder, pictures):
    rows = {"image": [{"bytes": data, "path": None} for data in [*pictures, None]], "label": [0, 1] * 10 + [1]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(rows), sink, row_group_size=8)
    folder.write("data/train.parquet", sink.getvalue().to_pybytes())


def tars(folder, pictures):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for index, data in enumerate([*pictures, b"no picture"]):
            for name, content in ((f"{index:03d}.png", data), (f"{index:03d}.cls", b"%d" % (index % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    folder.write("data/train.tar", out.getvalue())


def zips(folder, pictures):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, data in enumerate([*pictures, b"no picture"]):
            archive.writestr(f"{index % 2}/{index:03d}.png", data)
    folder.write("data/train.zip", out.getvalue())


@pytest.mark.parametrize("lay_out", [picture_folder, labelled_folder, tables, tars, zips])
def test_a_source_of_any_kind_is_listed_and_read_there_as_on_a_disk(lay_out, store, write_pictures, make_set, tmp_path):
    write_pictures(tmp_path / "pictures", 20)
    pictures = [path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())]
    here, there = Folder(tmp_path / "source"), Folder(store) / f"sources/{lay_out.__name__}"
    sets = []
    for folder, out in ((here, tmp_path / "here"), (there, tmp_path / "there")):
        lay_out(folder, pictures)
        check_source([folder.uri])
        sets.append(make_set(folder.uri, out, max_reject_fraction=0.1))

    assert sets[0].digest == sets[1].digest
    assert sets[0].classes == ["0", "1"]
    assert [sum(tar.num_samples for tar in shards.tars) for shards in sets] == [20, 20]
    assert [sum(shards.rejects.values()) for shards in sets] == [1, 1]


def test_a_file_there_may_be_a_source_by_itself(store):
    folder = Folder(store) / "alone"
    zips(folder, [b"first", b"second"])
    source = open_source([(folder / "data/train.zip").uri])
    (block,) = source.blocks()

    assert [item.source for item in block] == ["train.zip/0/000.png", "train.zip/1/001.png", "train.zip/0/002.png"]
    assert list(source.read(block)) == [b"first", b"second", b"no picture"]
