import inspect
import json

import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging as their_logging
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.checkpoint import Model
from diffusion.diffusers_config import KINDS, SCHEDULER, UNET
from diffusion.diffusers_format import WEIGHTS, export_diffusers, import_diffusers
from diffusion.files import Folder
from diffusion.process import Diffusion, DiffusionConfig
from diffusion.samplers import ddpm
from diffusion.sampling import SamplerConfig, network_denoiser, timesteps_of
from diffusion.unet import UNet, UNetConfig

SMALL = {
    "image_size": 8, "base_channels": 16, "norm_groups": 4, "channel_mults": (1, 2), "num_res_blocks": 1,
    "attention_resolutions": (4,), "dropout": 0.0,
}  # fmt: skip
NETWORKS = {
    "small": {},
    "grey, without attention": {"image_channels": 1, "attention_resolutions": ()},
    "uneven": {"channel_mults": (1, 3, 2), "num_res_blocks": 2, "attention_resolutions": (8, 2), "dropout": 0.3},
    "one level": {"channel_mults": (1,), "attention_resolutions": (8,), "image_channels": 4},
    "scale and shift": {"scale_shift_norm": True},
    "heads": {"head_channels": 4},
    "learned variance": {"learned_variance": True, "image_channels": 1},
    "classes": {"num_classes": 3},
    "all at once": {"scale_shift_norm": True, "head_channels": 8, "learned_variance": True, "num_classes": 2},
}
PROCESSES = {
    "linear": {},
    "linear of 200": {"num_timesteps": 200, "variance": "fixed_large"},
    "cosine": {"schedule": "cosine", "prediction": "x0", "loss": "min_snr", "snr_gamma": 3.0},
    "sigmoid": {"schedule": "sigmoid", "prediction": "v", "num_timesteps": 100},
    "linear to the end": {"zero_terminal_snr": True, "prediction": "v"},
    "cosine to the end": {"schedule": "cosine", "zero_terminal_snr": True, "prediction": "x0", "num_timesteps": 50},
    "sigmoid to the end": {"schedule": "sigmoid", "zero_terminal_snr": True, "prediction": "v"},
    "learned": {"variance": "learned", "loss": "vlb", "schedule": "cosine", "num_timesteps": 400},
}
networks = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
processes = pytest.mark.parametrize("options", PROCESSES.values(), ids=PROCESSES)


@torch.no_grad()
def randomised(network):
    """The same network with every weight drawn anew, none of them at zero or one, so that every path matters."""
    draws = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return network.eval()


def model_of(network=None, **process):
    shape = UNetConfig(**{**SMALL, **(network or {})})
    if shape.learned_variance:
        process = {"variance": "learned", "loss": "hybrid", **process}
    unet = randomised(UNet(shape))
    classes = [f"class {i}" for i in range(shape.num_classes)]
    return Model(unet, Diffusion(DiffusionConfig(**process)), classes, 4, {"sampler": "ddim", "steps": 20})


def exported(model):
    """The files of a model's folder, by name."""
    files = {}
    export_diffusers(files.__setitem__, model)
    return files


def imported(files):
    def read(name):
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    return import_diffusers(read)


def changed(files, name, **words):
    """The files with some words of a config changed, or taken out where they are `...`."""
    config = {key: value for key, value in {**json.loads(files[name]), **words}.items() if value is not ...}
    return {**files, name: json.dumps(config).encode()}


def theirs(files, folder):
    """What diffusers reads: its network and its scheduler."""
    for name, data in files.items():
        Folder(folder).write(name, data)
    network, loading = UNet2DModel.from_pretrained(
        folder / "unet", output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
    )
    assert not any(loading.values())
    return network.eval(), DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)


def inputs(config, batch=3):
    draws = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, config.image_channels, config.image_size, config.image_size, generator=draws)
    labels = torch.arange(batch) % (config.num_classes + 1) if config.num_classes else None
    return x_t, torch.tensor([0, 17, 999])[:batch], labels


@torch.no_grad()
def assert_same_answers(ours, network):
    x_t, t, labels = inputs(ours.config)
    answer, expected = ours(x_t, t, labels), network(x_t, t, class_labels=labels).sample

    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def assert_same_model(found, expected):
    weights = expected.unet.state_dict()

    assert found.unet.config == expected.unet.config
    assert found.diffusion.config == expected.diffusion.config
    assert (found.classes, found.chunk, found.sampler) == (expected.classes, expected.chunk, expected.sampler)
    assert found.unet.state_dict().keys() == weights.keys()
    for name, weight in found.unet.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert not found.unet.training


def their_unet(**options):
    """A network as diffusers makes it, in the one form that ours can have."""
    return UNet2DModel(
        **{
            "sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
            "norm_eps": 1e-6, **options,
        }
    )  # fmt: skip


def saved(pipeline, folder):
    """The files that diffusers itself writes."""
    pipeline.save_pretrained(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("file", "kind"), [(UNET, UNet2DModel), (SCHEDULER, DDPMScheduler)])
def test_the_defaults_are_those_of_diffusers(file, kind):
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD}

    assert json.dumps(KINDS[file][1], sort_keys=True) == json.dumps(defaults, sort_keys=True)


@networks
def test_an_exported_network_answers_in_diffusers_as_here(options, tmp_path):
    model = model_of(options)
    network, _ = theirs(exported(model), tmp_path)

    assert_same_answers(model.unet, network)


@networks
def test_an_exported_model_comes_back_as_it_was(options):
    model = model_of(options)

    assert_same_model(imported(exported(model)), model)


@processes
def test_an_exported_process_comes_back_as_it_was(options):
    network = {"learned_variance": options.get("variance") == "learned"}
    model = model_of(network, **options)

    assert_same_model(imported(exported(model)), model)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 2),
    st.sets(st.sampled_from([2, 4, 8])),
    st.sampled_from([0, 1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)
def test_any_network_comes_back_as_it_was(mults, num_res_blocks, sides, head_channels, scale_shift, learned, classes):
    levels = [8 // 2**level for level in range(1 + len(mults))]
    model = model_of(
        {
            "base_channels": 4, "norm_groups": 2, "channel_mults": (1, *mults), "num_res_blocks": num_res_blocks,
            "attention_resolutions": tuple(side for side in levels if side in sides), "head_channels": head_channels,
            "scale_shift_norm": scale_shift, "learned_variance": learned, "num_classes": classes,
        }
    )  # fmt: skip

    assert_same_model(imported(exported(model)), model)


def test_the_canonical_network_goes_both_ways(tmp_path):
    unet = randomised(UNet(UNetConfig()))
    model = Model(unet, Diffusion(DiffusionConfig(variance="fixed_large")), [], 16, {})
    files = exported(model)
    network, scheduler = theirs(files, tmp_path / "ours")
    back = imported(saved(DDPMPipeline(network, scheduler), tmp_path / "theirs"))

    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307
    assert_same_answers(unet, network)
    assert_same_answers(back.unet, network)
    assert back.unet.config == unet.config
    assert back.diffusion.config == model.diffusion.config


@networks
def test_a_network_that_diffusers_saves_answers_here_as_there(options, tmp_path):
    model = model_of(options)
    network, scheduler = theirs(exported(model), tmp_path / "ours")
    files = saved(DDPMPipeline(randomised(network), scheduler), tmp_path / "theirs")
    if model.classes:
        files["ddpm.json"] = exported(model)["ddpm.json"]

    assert_same_answers(imported(files).unet, network)


def test_a_network_made_by_diffusers_is_imported_with_what_is_usual(tmp_path):
    network = randomised(their_unet())
    model = imported(saved(DDPMPipeline(network, DDPMScheduler(variance_type="fixed_large")), tmp_path))

    assert_same_answers(model.unet, network)
    assert model.unet.config == UNetConfig(**SMALL)
    assert model.diffusion.config == DiffusionConfig(variance="fixed_large")
    assert (model.classes, model.chunk, model.sampler) == ([], 16, {"spacing": "leading"})


@pytest.mark.parametrize(
    "options",
    [
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
        {"attention_head_dim": 8},
        {"time_embedding_dim": 64, "attn_norm_num_groups": 4},
        {"sample_size": [8, 8], "act_fn": "swish"},
        {"in_channels": 1, "out_channels": 1, "dropout": 0.1},
    ],
    ids=str,
)
def test_a_network_that_diffusers_says_otherwise_is_imported(options, tmp_path):
    network = randomised(their_unet(**options))
    files = saved(DDPMPipeline(network, DDPMScheduler()), tmp_path)

    assert_same_answers(imported(files).unet, network)


def test_a_key_that_is_absent_has_the_default_of_diffusers(tmp_path):
    network = randomised(
        UNet2DModel(
            sample_size=8, block_out_channels=(32, 64), attention_head_dim=8, downsample_padding=0,
            flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        )
    )  # fmt: skip
    files = saved(DDPMPipeline(network, DDPMScheduler()), tmp_path)
    for file in (UNET, SCHEDULER):
        defaults = json.loads(json.dumps(KINDS[file][1]))
        words = {key: value for key, value in json.loads(files[file]).items() if defaults.get(key, ...) != value}
        files[file] = json.dumps(words).encode()
    model = imported(files)

    assert "attention_head_dim" not in json.loads(files[UNET])
    assert_same_answers(model.unet, network)
    assert model.diffusion.config == DiffusionConfig()


def test_the_weights_are_laid_out_as_diffusers_lays_them_out(tmp_path):
    ours = exported(model_of())
    back = saved(DDPMPipeline(*theirs(ours, tmp_path / "ours")), tmp_path / "theirs")

    assert back[WEIGHTS] == ours[WEIGHTS]


def test_an_old_folder_with_old_names_and_leftovers_all_in_one_place_is_imported(tmp_path):
    network = randomised(their_unet())
    files = saved(DDPMPipeline(network, DDPMScheduler()), tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = safetensors.torch.load(files[WEIGHTS])
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): weight for key, weight in weights.items()}
    files = changed({**files, WEIGHTS: safetensors.torch.save(weights)}, SCHEDULER, tensor_format="pt", timesteps=9)
    flat = {name.rpartition("/")[2]: data for name, data in changed(files, UNET, _diffusers_version="0.0.4").items()}

    assert any(".query." in name for name in weights)
    assert_same_answers(imported(flat).unet, network)


def test_half_precision_weights_are_imported_in_single_precision(tmp_path):
    network = randomised(their_unet()).half()
    model = imported(saved(DDPMPipeline(network, DDPMScheduler()), tmp_path))

    assert {weight.dtype for weight in model.unet.state_dict().values()} == {torch.float32}
    assert_same_answers(model.unet, network.float())


@pytest.fixture
def their_words(caplog):
    """What diffusers logs: it keeps its log from others unless it is told not to."""
    their_logging.enable_propagation()
    yield caplog
    their_logging.disable_propagation()


@networks
def test_the_pipeline_of_diffusers_opens_an_unconditional_model_without_a_word(options, tmp_path, their_words):
    model = model_of(options)
    files = exported(model)
    if model.classes:
        assert "model_index.json" not in files
        return
    theirs(files, tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False, local_files_only=True)

    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert_same_answers(model.unet, pipeline.unet)
    assert not their_words.records


def their_pictures_and_ours(model, folder, steps):
    """What DDPMPipeline draws from the exported folder, and our sampler from the same noise, in 0 … 1."""
    theirs(exported(model), folder)
    pipeline = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    draws, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    expected = pipeline(2, draws, num_inference_steps=steps, output_type="pt", return_dict=False)[0]

    def unit(t):
        return torch.randn(2, model.unet.config.image_channels, 8, 8, generator=noise)

    timesteps = timesteps_of(SamplerConfig(**{**model.sampler, "sampler": "ddpm", "steps": steps}), model.diffusion)
    denoise = network_denoiser(model.unet, model.diffusion, None)
    with torch.no_grad():
        *_, last = ddpm(denoise, unit(None), timesteps, model.diffusion, unit)
    return expected, (last / 2 + 0.5).clamp(0, 1)


@processes
def test_the_pipeline_of_diffusers_draws_the_pictures_of_our_sampler(options, tmp_path):
    model = model_of({"learned_variance": options.get("variance") == "learned"}, **options)
    expected, ours = their_pictures_and_ours(model, tmp_path, steps=10)

    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1
    assert ((expected > 0) & (expected < 1)).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_the_pipeline_of_diffusers_visits_the_timesteps_of_our_sampler(schedule, tmp_path):
    model = model_of(schedule=schedule, prediction="v", zero_terminal_snr=True)
    model.sampler["spacing"] = "trailing"
    expected, ours = their_pictures_and_ours(model, tmp_path, steps=7)

    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@processes
def test_the_table_of_the_exported_scheduler_is_ours(options, tmp_path):
    model = model_of({"learned_variance": options.get("variance") == "learned"}, **options)
    _, scheduler = theirs(exported(model), tmp_path)
    found, expected = scheduler.alphas_cumprod.double(), model.diffusion.alphas_cumprod

    torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-8)  # float32's, after up to 1000 products


@processes
def test_a_process_that_diffusers_saves_comes_back_as_it_was(options, tmp_path):
    model = model_of({"learned_variance": options.get("variance") == "learned"}, **options)
    files = exported(model)
    network, scheduler = theirs(files, tmp_path / "ours")
    back = saved(DDPMPipeline(network, scheduler), tmp_path / "theirs")

    assert imported({**back, "ddpm.json": files["ddpm.json"]}).diffusion.config == model.diffusion.config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"variance_type": "fixed_small_log"}, {}),
        ({"timestep_spacing": "trailing"}, {}),
        ({"beta_start": 0.001, "beta_end": 0.2, "num_train_timesteps": 100}, {"num_timesteps": 100}),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_end": 7}, {"schedule": "cosine"}),
        ({"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist(), "beta_schedule": "scaled_linear"}, {}),
        (
            {"prediction_type": "sample", "rescale_betas_zero_snr": True},
            {"prediction": "x0", "zero_terminal_snr": True},
        ),
    ],
)  # fmt: skip
def test_a_scheduler_in_other_words_is_one_of_ours(words, expected, tmp_path):
    files = saved(DDPMPipeline(their_unet(), DDPMScheduler(**words)), tmp_path)
    model = imported(files)

    assert model.diffusion.config == DiffusionConfig(**expected)
    assert model.sampler == {"spacing": words.get("timestep_spacing", "leading")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, '_class_name must be "UNet2DModel", got "UNet2DConditionModel"'),
        ({"_class_name": ...}, '_class_name must be "UNet2DModel", got null'),
        ({"norm_eps": 1e-5}, "norm_eps must be 1e-06, got 1e-05"),
        ({"norm_eps": ...}, "norm_eps must be 1e-06, got 1e-05"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos must be false, got true"),
        ({"freq_shift": 0}, "freq_shift must be 1, got 0"),
        ({"center_input_sample": True}, "center_input_sample must be false, got true"),
        ({"act_fn": "gelu"}, 'act_fn must be "silu" or "swish", got "gelu"'),
        ({"downsample_padding": 1}, "downsample_padding must be 0, got 1"),
        ({"downsample_type": "resnet"}, 'downsample_type must be "conv", got "resnet"'),
        ({"upsample_type": "resnet"}, 'upsample_type must be "conv", got "resnet"'),
        ({"time_embedding_type": "fourier"}, 'time_embedding_type must be "positional", got "fourier"'),
        ({"time_embedding_dim": 32}, "time_embedding_dim must be null or 64, got 32"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor must be 1, got 1.4"),
        ({"mid_block_type": None}, 'mid_block_type must be "UNetMidBlock2D", got null'),
        ({"add_attention": False}, "add_attention must be true, got false"),
        ({"class_embed_type": "timestep"}, 'class_embed_type must be null, got "timestep"'),
        ({"num_class_embeds": 4}, "num_class_embeds must be null, by ddpm.json, got 4"),
        ({"resnet_time_scale_shift": "spatial"}, 'time_scale_shift must be "default" or "scale_shift", got "spatial"'),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups must be null or 4 for default, got 2"),
        (
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None},
            "attn_norm_num_groups must be 4 for scale_shift, got null",
        ),
        ({"attention_head_dim": 12}, r"attention_head_dim must be null (one head) or divide each of [16, 32], got 12"),
        ({"attention_head_dim": 0}, r"attention_head_dim must be null (one head) or divide each of [16, 32], got 0"),
        ({"attention_head_dim": ..., "block_out_channels": [20, 20]}, "divide each of [20, 20], got 8"),
        ({"block_out_channels": [16, 24]}, "block_out_channels must be whole multiples of the first, got [16, 24]"),
        ({"block_out_channels": [16]}, "block_out_channels must be one for each of down_block_types, got [16]"),
        ({"block_out_channels": []}, "block_out_channels must be one for each of down_block_types, got []"),
        ({"block_out_channels": [18, 18]}, "base_channels must be a positive multiple of norm_groups=4, got 18"),
        ({"block_out_channels": 16}, "a value is of the wrong type: "),
        (
            {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]},
            'down_block_types must be of DownBlock2D and AttnDownBlock2D, got ["DownBlock2D", "CrossAttnDownBlock2D"]',
        ),
        (
            {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
            'up_block_types must be ["AttnUpBlock2D", "UpBlock2D"], by down_block_types, got ["UpBlock2D", "Attn',
        ),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, 'up_block_types must be ["AttnUpBlock2D", "UpBlock2D"]'),
        ({"out_channels": 6}, "out_channels must be 3, by in_channels and the scheduler's variance_type, got 6"),
        ({"in_channels": 5, "out_channels": 5}, "image_channels must be 1 to 4, got 5"),
        ({"sample_size": None}, "sample_size must be the side of a square picture, got null"),
        ({"sample_size": [8, 16]}, "sample_size must be the side of a square picture, got [8, 16]"),
        ({"sample_size": 9}, "image_size must be a positive multiple of 2 for 2 levels, got 9"),
        ({"layers_per_block": 0}, "layers_per_block must be a positive integer, got 0"),
        ({"layers_per_block": [1, 2]}, "layers_per_block must be a positive integer, got [1, 2]"),
        ({"norm_num_groups": None}, "norm_num_groups must be a positive integer, got null"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"dropout": None}, "a value is of the wrong type: "),
        ({"_diffusers_version": "0.50.1", "rope": "2d"}, 'rope must be absent, since it is new in 0.50.1, got "2d"'),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused_with_key_value_and_what_is_possible(words, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is a string, not a pattern
        imported(changed(exported(model_of()), UNET, **words))

    assert str(refusal.value).startswith("unet/config.json: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, '_class_name must be "DDPMScheduler", got "DDIMScheduler"'),
        ({"beta_schedule": "scaled_linear"}, 'must be "linear" or "squaredcos_cap_v2", got "scaled_linear"'),
        ({"beta_schedule": "sigmoid"}, 'beta_schedule must be "linear" or "squaredcos_cap_v2", got "sigmoid"'),
        ({"beta_start": 0.00085}, "must be those of linear (beta_start 0.0001, beta_end 0.02), of squaredcos_cap_v2"),
        ({"num_train_timesteps": 100}, "betas must be those of linear (beta_start 0.001, beta_end 0.2), of squaredcos"),
        ({"num_train_timesteps": 10}, "betas must be those of linear"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be a positive integer, got 0"),
        ({"num_train_timesteps": "1000"}, 'num_train_timesteps must be a positive integer, got "1000"'),
        ({"trained_betas": [0.1] * 1000}, "betas must be those of linear"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be 1000 (num_train_timesteps), got 2"),
        ({"beta_start": "0.1"}, "a value is of the wrong type"),
        ({"clip_sample": False}, "clip_sample must be true, got false"),
        ({"clip_sample_range": 2.0}, "clip_sample_range must be 1, got 2.0"),
        ({"thresholding": True}, "thresholding must be false, got true"),
        ({"timestep_spacing": "linspace"}, 'timestep_spacing must be "leading" or "trailing", got "linspace"'),
        ({"steps_offset": 1}, "steps_offset must be 0, got 1"),
        ({"variance_type": "learned"}, 'variance_type must be "fixed_small" or "fixed_large" or "learned_range" or'),
        ({"variance_type": "fixed_large_log"}, 'or "fixed_small_log", got "fixed_large_log"'),
        ({"prediction_type": "flow"}, 'prediction_type must be "epsilon" or "sample" or "v_prediction", got "flow"'),
        ({"predict_epsilon": False}, "predict_epsilon must be true, got false"),
        ({"rescale_betas_zero_snr": True}, "prediction must be x0 or v with zero_terminal_snr"),
    ],
)  # fmt: skip
def test_a_scheduler_that_ours_cannot_be_is_refused_with_key_value_and_what_is_possible(words, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is a string, not a pattern
        imported(changed(exported(model_of()), SCHEDULER, **words))

    assert str(refusal.value).startswith("scheduler/scheduler_config.json: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_learned_variance_needs_twice_the_channels():
    files = changed(exported(model_of()), SCHEDULER, variance_type="learned_range")
    del files["ddpm.json"]

    with pytest.raises(
        ValueError, match="out_channels must be 6, by in_channels and the scheduler's variance_type, got 3"
    ):
        imported(files)  # fmt: skip


def test_classes_are_imported_only_with_their_names():
    files = exported(model_of({"num_classes": 3}))
    del files["ddpm.json"]

    with pytest.raises(ValueError, match=r"num_class_embeds must be null without a ddpm\.json that names .*, got 4"):
        imported(files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"format_version": 2}, "ddpm.json: format_version must be 1, got 2"),
        ({"classes": ["one"]}, "unet/config.json: num_class_embeds must be 2, by ddpm.json, got 4"),
        ({"classes": ...}, "ddpm.json: classes must be a list, got None"),
        ({"chunk": "many"}, "ddpm.json: chunk must be a int, got 'many'"),
        ({"training": {"loss": "hybrid"}}, "ddpm.json: loss must be one of simple, min_snr, vlb with variance"),
        ({"training": {"lr": 1}}, "ddpm.json: a value is of the wrong type: "),
    ],
)
def test_an_extra_file_that_does_not_fit_is_refused(words, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is a string, not a pattern
        imported(changed(exported(model_of({"num_classes": 3})), "ddpm.json", **words))

    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("name", [UNET, WEIGHTS, SCHEDULER])
def test_a_missing_file_is_named(name):
    files = exported(model_of())
    del files[name]

    with pytest.raises(ValueError, match=f"^{name} is missing"):
        imported(files)


@pytest.mark.parametrize("name", [UNET, WEIGHTS, SCHEDULER, "ddpm.json"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(name, share):
    files = exported(model_of())
    cut = files[name][: int(share * len(files[name]))]

    with pytest.raises(ValueError, match=rf"^{name} is (not JSON|damaged)"):
        imported({**files, name: cut})


def test_a_config_that_is_not_an_object_is_named():
    with pytest.raises(ValueError, match=r"^unet/config.json must be a JSON object, got \[1\]"):
        imported({**exported(model_of()), UNET: b"[1]"})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda w: w.pop("mid_block.attentions.0.to_q.weight"), r"to_q\.weight should be \(32, 32\), is absent"),
        (lambda w: w.update({"skip.weight": torch.ones(2)}), r"skip\.weight should be absent, is \(2,\)"),
        (lambda w: w.update({"conv_in.bias": torch.ones(2)}), r"conv_in\.bias should be \(16,\), is \(2,\)"),
        (
            lambda w: w.update({"up_blocks.1.resnets.0.conv_shortcut.weight": torch.ones(16, 48, 3, 3)}),
            r"conv_shortcut\.weight should be \(16, 48, 1, 1\), is \(16, 48, 3, 3\)",
        ),
    ],
    ids=["missing", "extra", "another shape", "another kernel"],
)
def test_weights_of_another_network_are_refused_with_the_first_difference(change, difference):
    files = exported(model_of())
    weights = safetensors.torch.load(files[WEIGHTS])
    change(weights)

    with pytest.raises(ValueError, match=f"^{WEIGHTS} is of another network than its config.json: .*{difference}"):
        imported({**files, WEIGHTS: safetensors.torch.save(weights)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_channels": 2, "norm_groups": 1}, "base_channels must be at least 4 for diffusers, got 2"),
        ({"channel_mults": (2, 1)}, r"channel_mults must begin with 1 for diffusers, got \(2, 1\)"),
    ],
)
def test_a_network_that_diffusers_cannot_be_is_not_exported(options, message):
    files = {}

    with pytest.raises(ValueError, match=message):
        export_diffusers(files.__setitem__, model_of(options))
    assert not files


def test_exporting_an_imported_model_writes_the_same_bytes():
    files = exported(model_of())

    assert exported(imported(files)) == files
