"""A part of a sample run, as a Ray task draws it: here without Ray."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoint import Model, save_model
from diffusion.data.layout import tar_name
from diffusion.data.shards import read_report
from diffusion.data.tar import read_headers
from diffusion.files import Folder
from diffusion.film import FRAMES
from diffusion.grid import PADDING
from diffusion.metrics.features import thumbnail_features
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.unet import UNet, UNetConfig
from workflows.config import SampleStage
from workflows.draw_part import REVERSE_FILM, REVERSE_STRIP, DrawRequest, draw_part
from workflows.drawing import model_files, parts_of
from workflows.metrics.features import NetFile, file_of

CHUNK = 4
STAGE = SampleStage(num=10, steps=2)
THUMBNAILS = NetFile("thumbnails", "thumbnails")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    unet = UNet(UNetConfig(image_size=8, image_channels=1, base_channels=8, norm_groups=4, channel_mults=(1,)))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    files = {}
    save_model(files.__setitem__, Model(unet.eval(), Diffusion(DiffusionConfig()), [], CHUNK, {}))
    return model_files("models:/m/1", files)


def request(model, place, nets=(THUMBNAILS,)):
    return DrawRequest(STAGE, model, Folder(place / "out"), nets, [Folder(place / net.name) for net in nets])


def everything(place):
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def draw_all(drawn, parts=None):
    return [draw_part(part, drawn) for part in parts or parts_of(STAGE.num, CHUNK)]


def test_parts_are_the_same_in_any_order(model, tmp_path):
    parts = parts_of(STAGE.num, CHUNK)
    draw_all(request(model, tmp_path / "a"))
    draw_all(request(model, tmp_path / "b"), parts[::-1])

    assert len(parts) == 3
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_the_features_are_those_of_the_pictures_in_the_tar(model, tmp_path):
    drawn = request(model, tmp_path)
    (part, *_) = parts_of(STAGE.num, CHUNK)
    report = draw_part(part, drawn)
    data = drawn.out.read(report.tars[0].name)
    files = [member.data(data) for member in read_headers(data) if member.name.endswith(".png")]
    pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    expected = thumbnail_features(torch.from_numpy(np.stack(pictures))[:, None]).vectors
    with np.load(io.BytesIO(drawn.features[0].read(file_of(tar_name("train", part.number))))) as arrays:
        np.testing.assert_allclose(arrays["vectors"], expected)


def test_how_the_first_pictures_came_to_be_is_shown_once_from_noise_to_themselves(model, tmp_path):
    drawn = request(model, tmp_path)
    first, second, _ = parts_of(STAGE.num, CHUNK)
    draw_part(second, drawn)

    assert not drawn.out.exists(REVERSE_FILM)

    draw_part(first, drawn)
    with Image.open(io.BytesIO(drawn.out.read(REVERSE_FILM))) as film:
        assert film.n_frames == 1 + STAGE.steps
    assert drawn.out.exists(REVERSE_STRIP)


def test_of_many_steps_some_are_shown_and_the_last_is_the_picture(model, tmp_path):
    many = replace(request(model, tmp_path), stage=replace(STAGE, sampler="ddim", steps=2 * FRAMES))
    (part, *_) = parts_of(STAGE.num, CHUNK)
    report = draw_part(part, many)
    data = many.out.read(report.tars[0].name)
    first = next(member.data(data) for member in read_headers(data) if member.name.endswith(".png"))
    picture = np.asarray(Image.open(io.BytesIO(first)))
    with Image.open(io.BytesIO(many.out.read(REVERSE_FILM))) as film:
        assert film.n_frames == FRAMES
        film.seek(FRAMES - 1)
        frame = np.asarray(film.convert("L"))
        scale = (film.width - PADDING) // CHUNK // (8 + PADDING)

    shown = frame[PADDING * scale : (PADDING + 8) * scale : scale, PADDING * scale : (PADDING + 8) * scale : scale]
    assert np.abs(shown.astype(int) - picture).max() <= 1


def test_a_part_that_is_there_is_not_drawn_again_for_the_features_that_it_lacks(model, tmp_path):
    without = request(model, tmp_path, nets=())
    part = parts_of(STAGE.num, CHUNK)[1]
    report = draw_part(part, without)
    drawn = everything(tmp_path)
    (tmp_path / "thumbnails").mkdir()
    broken = model_files("models:/m/1", {"config.json": b"{}", "model.safetensors": b""})
    again = draw_part(part, request(broken, tmp_path))  # which could not be drawn with
    late = everything(tmp_path)
    draw_part(part, request(model, tmp_path / "at once"))

    assert again == report == read_report(without.out, part.number)
    assert drawn.items() <= late.items()
    name = f"thumbnails/{file_of(tar_name('train', part.number))}"
    assert late[name] == everything(tmp_path / "at once")[name]
