"""`ddpm restore` and `ddpm average`, on the model that the session's run made."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoint import load_model
from diffusion.data.loader import SampleReader
from diffusion.data.shard_set import open_shard_set
from diffusion.files import Folder
from workflows.storage import Environment

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def restore(ddpm, cluster, whole, storage):
    """`ddpm restore` with these flags on the session's cluster; its result and what it said."""

    def call(*flags, check=True):
        done = ddpm(
            "restore", "smoke", "--storage", str(storage), "--address", cluster.address, "--json", *flags, check=check
        )
        return (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None), done

    return call


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def held_out(whole, num):
    images, _ = SampleReader(open_shard_set(Folder(whole["data"])), "val").read(range(num))
    return images[:, 0]


@pytest.fixture(scope="module")
def boxed(restore):
    return restore()[0]


def test_held_out_pictures_with_a_box_cut_out_are_mended_inside_the_box_only(boxed, whole):
    originals = held_out(whole, 10)
    names = [row["name"] for row in Folder(boxed["restored"]).read_json("restored.json")]
    pictures = np.stack([read(f"{boxed['restored']}/pictures/{name}") for name in names])
    given = np.stack([read(f"{boxed['restored']}/damaged/{name}") for name in names])
    outside = np.ones((8, 8), dtype=bool)
    outside[2:6, 2:6] = False

    assert len(pictures) == 10
    assert (pictures[:, outside] == originals[:, outside]).all()
    assert (given[:, ~outside] == 127).all()
    assert (pictures[:, ~outside] != 127).any()


def test_what_it_measured_is_what_the_files_say(boxed, whole):
    originals = held_out(whole, 10).astype(float)
    for name, metric in (("pictures", "psnr"), ("damaged", "psnr_damaged")):
        files = np.stack([read(f"{boxed['restored']}/{name}/{i:06d}.png") for i in range(10)])
        error = ((files - originals) ** 2).mean()

        assert boxed["metrics"][metric] == pytest.approx(10 * np.log10(255**2 / error))
    assert boxed["metrics"]["n"] == 10


def test_the_grid_has_damaged_restored_and_original_in_three_rows(boxed, whole):
    grid = read(boxed["grid"])
    scale = grid.shape[1] // (10 * (8 + 2) + 2)
    cell = (8 + 2) * scale
    originals = grid[2 * cell + 2 * scale : 3 * cell : scale, 2 * scale : cell : scale]

    assert grid.shape == (3 * cell + 2 * scale, 10 * cell + 2 * scale)
    assert (originals == held_out(whole, 1)[0]).all()


def test_it_is_tracked_with_its_lineage_and_its_pictures(boxed, whole, storage):
    from workflows.tracking import Tracker

    tracker = Tracker(Environment(storage=str(storage)))
    run = tracker.run(boxed["run"])
    downloaded = tracker.download(boxed["run"], "restored", storage / "downloaded")

    assert run.tags["ddpm.model"] == whole["model"]
    assert run.tags["ddpm.dataset_digest"] == whole["digest"]
    assert run.metrics["psnr"] == boxed["metrics"]["psnr"]
    assert len(list((downloaded / "pictures").iterdir())) == 10
    assert (downloaded / "grid.png").is_file()


def test_again_it_is_reused(restore, boxed):
    again, done = restore()

    assert again == boxed
    assert "restore: reused" in done.stderr


def test_a_folder_of_files_comes_back_under_the_same_names_whatever_lies_beside_them(
    restore, whole, storage, tmp_path, ddpm
):
    for index, pixels in enumerate(held_out(whole, 3)):
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / "deep" / f"{index}.png")
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    (tmp_path / "alone").mkdir()
    Image.fromarray(held_out(whole, 3)[2]).convert("RGB").save(tmp_path / "alone" / "other.bmp")
    flags = ("--noise-std", "20", "--sampler", "dpmpp")
    three, _ = restore("--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *flags)
    restore("--source", str(tmp_path / "alone"), "--out", str(tmp_path / "out2"), *flags)

    assert three["metrics"] == {"n": 3.0}
    assert sorted(p.name for p in (tmp_path / "out/pictures/deep").iterdir()) == ["0.png", "1.png", "2.png"]
    assert not (tmp_path / "out/damaged").exists()
    assert not (tmp_path / "out/parts").exists()
    assert (read(tmp_path / "out/pictures/deep/2.png") == read(tmp_path / "out2/pictures/other.bmp.png")).all()
    assert (read(tmp_path / "out/pictures/deep/2.png") != held_out(whole, 3)[2]).any()


def test_white_in_a_mask_is_painted_anew_and_dark_is_kept(restore, whole, tmp_path):
    pixels = held_out(whole, 1)[0]
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "in" / "a.webp", lossless=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    places = ("--source", str(tmp_path / "in"), "--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "out"))
    restore(*places)
    mended = read(tmp_path / "out/pictures/a.webp.png")

    assert (mended[:, :4] == pixels[:, :4]).all()
    assert (mended[:, 4:] != pixels[:, 4:]).any()


def test_what_cannot_be_mended_gets_one_line(restore, whole, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    places = ("--source", str(tmp_path / "in"), "--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "out"))
    for flags, message in {
        (*places[:-1], str(tmp_path / "in" / "out")): "out must not lie in the source or the masks",
        (*places[:-1], str(tmp_path)): "out must be a folder that is empty or new",
        places: f"cannot use {tmp_path}/masks/a.png: it is 8x9, and must be 8x8",
        ("--damage", "none"): "damage must be box, noise or blur for held-out pictures",
    }.items():
        _, done = restore(*flags, check=False)

        assert done.returncode == 2, done.stderr
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "restored.json").exists()


@pytest.mark.chaos  # half a minute
def test_another_average_of_the_same_training_is_a_model_of_its_own(ddpm, whole, storage):
    done = ddpm("average", "smoke", "--std", "0.07", "--storage", str(storage), "--json")
    made = json.loads(done.stdout.splitlines()[-1])
    models = {}
    for name in ("smoke@champion", made["model"].removeprefix("models:/")):
        out = storage / "pulled" / name.replace("/", "-")
        ddpm("pull", "model", name, str(out), "--storage", str(storage))
        models[name] = load_model(lambda file, out=out: (out / file).read_bytes())
    champion, other = (model.unet.state_dict() for model in models.values())

    assert made["run"]
    assert made["model"] != whole["model"]
    assert champion.keys() == other.keys()
    assert not torch.equal(champion["conv_in.weight"], other["conv_in.weight"])
