import json

import pytest
import torch

from diffusion.checkpoint import (
    Checkpoint,
    Model,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
    save_model,
)
from diffusion.files import Folder
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.unet import UNet, UNetConfig

SMALL = {"image_size": 8, "base_channels": 8, "norm_groups": 4, "channel_mults": (1, 2), "num_res_blocks": 1}
FILES = ["model.safetensors", "ema-0.safetensors", "ema-1.safetensors", "optimizer.safetensors", "state.json", "COMMIT"]


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_of(num_classes=0, **options):
    """A model whose weights are all away from their start."""
    unet = UNet(UNetConfig(num_classes=num_classes, **{**SMALL, **options}))
    for seed, parameter in enumerate(unet.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed) / 10
    unet.eval()
    diffusion = Diffusion(DiffusionConfig(num_timesteps=200, schedule="cosine", prediction="v"))
    return Model(unet, diffusion, [f"class {i}" for i in range(num_classes)], 4, {"steps": 20, "name": "ddim"})


def checkpoint_of(num_emas=2):
    return Checkpoint(
        step=500,
        model={"weight": randn(3, 4, seed=0), "bias": randn(3, seed=1)},
        emas=[{"weight": randn(3, 4, seed=seed)} for seed in range(num_emas)],
        optimizer={"weight/exp_avg": randn(3, 4, seed=9), "weight/step": torch.tensor(500.0)},
        state={"epoch": 7, "key": "ä"},
    )


def saved(checkpoint):
    """The files of a checkpoint, by name, in the order in which they were written."""
    files = {}
    save_checkpoint(files.__setitem__, checkpoint)
    return files


def reader(files):
    """Reads as a Folder does."""

    def read(name):
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    return read


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_equal_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_loaded_model_gives_bitwise_the_same_answers(num_classes, tmp_path):
    model = model_of(num_classes)
    save_model(Folder(tmp_path).write, model)
    loaded = load_model(Folder(tmp_path).read)
    x_t, t = randn(5, 3, 8, 8, seed=0), torch.tensor([0, 1, 50, 100, 199])
    labels = torch.tensor([0, 1, 2, 3, 3]) if num_classes else None
    with torch.no_grad():
        assert torch.equal(loaded.unet(x_t, t, labels), model.unet(x_t, t, labels))


def test_a_loaded_model_is_all_that_was_saved(tmp_path):
    model = model_of(3, dropout=0.2, attention_resolutions=(4, 8))
    save_model(Folder(tmp_path).write, model)
    loaded = load_model(Folder(tmp_path).read)

    assert_equal_tensors(loaded.unet.state_dict(), model.unet.state_dict())
    assert loaded.unet.config == model.unet.config
    assert loaded.diffusion.config == model.diffusion.config
    assert (loaded.classes, loaded.chunk, loaded.sampler) == (model.classes, model.chunk, model.sampler)
    assert not loaded.unet.training


def test_saving_a_loaded_model_writes_the_same_bytes(tmp_path):
    save_model(Folder(tmp_path / "first").write, model_of())
    save_model(Folder(tmp_path / "second").write, load_model(Folder(tmp_path / "first").read))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"base_channels": 12}, r"conv_in.bias should be \(12,\), is \(8,\)"),
        ({"num_res_blocks": 2}, r"down.1.conv.bias should be absent, is \(8,\)"),
        ({"channel_mults": (1, 2, 2)}, r"down.3.\w+.*should be .*, is "),
        ({"image_channels": 1}, r"conv_in.weight should be \(8, 1, 3, 3\), is \(8, 3, 3, 3\)"),
        ({"num_classes": 2}, r"label_embedding.weight should be \(3, 32\), is absent"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_first_difference(options, difference, tmp_path):
    folder = Folder(tmp_path)
    save_model(folder.write, model_of())
    config = folder.read_json("config.json")
    folder.write_json("config.json", {**config, "unet": {**config["unet"], **options}})

    with pytest.raises(ValueError, match=f"weights are of another network: .*{difference}"):
        load_model(folder.read)


@pytest.mark.parametrize("share", [0, 0.00001, 0.01, 0.5, 0.99999])
def test_weights_that_are_cut_short_are_refused(share, tmp_path):
    folder = Folder(tmp_path)
    save_model(folder.write, model_of())
    weights = folder.read("model.safetensors")
    folder.write("model.safetensors", weights[: int(share * len(weights))])

    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(folder.read)


def test_a_model_of_another_format_version_is_refused(tmp_path):
    folder = Folder(tmp_path)
    save_model(folder.write, model_of())
    folder.write_json("config.json", {**folder.read_json("config.json"), "format_version": 99})

    with pytest.raises(ValueError, match="model format_version must be 1, got 99"):
        load_model(folder.read)


def test_a_checkpoint_survives_the_round_trip(tmp_path):
    checkpoint = checkpoint_of()
    save_checkpoint(Folder(tmp_path).write, checkpoint)
    loaded = load_checkpoint(Folder(tmp_path).read)

    assert (loaded.step, loaded.state) == (500, {"epoch": 7, "key": "ä"})
    for found, expected in zip(
        [loaded.model, *loaded.emas, loaded.optimizer],
        [checkpoint.model, *checkpoint.emas, checkpoint.optimizer],
        strict=True,
    ):
        assert_equal_tensors(found, expected)


def test_a_tensor_in_another_memory_layout_survives_the_round_trip():
    weight = randn(2, 3, 4, 4, seed=0).to(memory_format=torch.channels_last)
    checkpoint = Checkpoint(1, {"weight": weight}, [], {}, {})

    assert torch.equal(load_checkpoint(reader(saved(checkpoint))).model["weight"], weight)


def test_equal_checkpoints_are_equal_bytes():
    assert saved(checkpoint_of()) == saved(checkpoint_of())


def test_commit_is_written_last():
    assert list(saved(checkpoint_of())) == FILES


@pytest.mark.parametrize("num_written", range(len(FILES)))
def test_a_save_that_was_cut_off_is_not_a_checkpoint(num_written):
    files = dict(list(saved(checkpoint_of()).items())[:num_written])

    with pytest.raises(ValueError, match="checkpoint is not whole"):
        load_checkpoint(reader(files))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(name, tmp_path):
    folder = Folder(tmp_path)
    save_checkpoint(folder.write, checkpoint_of())
    folder.delete(name)

    with pytest.raises(ValueError, match=f"checkpoint is not whole: .*{name}"):
        load_checkpoint(folder.read)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_found(name):
    files = saved(checkpoint_of())
    for num_bytes in range(len(files[name]) - 1):  # the last byte of COMMIT is a line's end
        with pytest.raises(ValueError, match="not whole"):
            load_checkpoint(reader({**files, name: files[name][:num_bytes]}))


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_flipped_bit_is_found(name):
    files = saved(checkpoint_of())
    for bit in range(0, 8 * len(files[name]), 7):
        with pytest.raises(ValueError, match=f"{name} does not have the sha256 that COMMIT says"):
            load_checkpoint(reader({**files, name: flipped(files[name], bit)}))


@pytest.mark.parametrize("num_emas", [1, 2])
def test_a_flipped_bit_in_commit_is_found(num_emas):
    files = saved(checkpoint_of(num_emas))
    for bit in range(8 * len(files["COMMIT"])):
        with pytest.raises(ValueError):  # noqa: PT011 - a digest, a name or the JSON itself, as the bit will have it
            load_checkpoint(reader({**files, "COMMIT": flipped(files["COMMIT"], bit)}))


def test_a_commit_that_names_too_few_files_is_not_whole():
    files = saved(checkpoint_of())
    digests = json.loads(files["COMMIT"])
    del digests["optimizer.safetensors"]

    with pytest.raises(ValueError, match="checkpoint is not whole"):
        load_checkpoint(reader({**files, "COMMIT": json.dumps(digests).encode()}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    unet = UNet(UNetConfig(image_size=8, base_channels=8, channel_mults=(1,), norm_groups=2, attention_resolutions=()))
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    weights["conv_in.bias"][0] = value

    with pytest.raises(ValueError, match=r"weights must be finite floating-point numbers; conv_in\.bias has others"):
        load_weights(unet, weights)


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": 1, "unet": {"x": 1}}']
)
def test_a_damaged_config_is_refused_by_name(config):
    with pytest.raises(ValueError, match=r"config\.json is damaged: "):
        load_model({"config.json": config, "model.safetensors": b""}.__getitem__)
