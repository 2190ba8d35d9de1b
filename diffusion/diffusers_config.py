"""Our configs in diffusers' words, and back: the arguments of its UNet2DModel and its DDPMScheduler.

Read against diffusers 0.42 (models/unets/unet_2d.py, schedulers/scheduling_ddpm.py). An argument that a config leaves
out has its default there; one that is given has a counterpart in ours, or must have a value that ours amounts to.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .process import DiffusionConfig
from .schedule import SCHEDULES, cosine_betas, zero_terminal_snr
from .unet import UNetConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float64
    from torch import Tensor

    from .process import Prediction, Schedule, Variance

    Words = dict[str, Any]

K = TypeVar("K", bound=str)
UNET, SCHEDULER, EXTRAS = "unet/config.json", "scheduler/scheduler_config.json", "ddpm.json"
VERSION = "0.42.1"
"""of diffusers, whose words these are"""

UNET_DEFAULTS: Words = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip
UNET_POSSIBLE: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "freq_shift": (1,),
    "flip_sin_to_cos": (False,), "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,),
    "downsample_padding": (0,), "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "norm_eps": (1e-6,), "add_attention": (True,), "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}  # fmt: skip
"""what a network of ours can be in diffusers' words; the first is what we write"""

SCHEDULER_DEFAULTS: Words = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon", "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0, "sample_max_value": 1.0,
    "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip
SCHEDULE_NAMES: dict[Schedule, str] = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTION_NAMES: dict[Prediction, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCE_NAMES: dict[Variance, str] = {
    "fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned": "learned_range",
}  # fmt: skip
SCHEDULER_POSSIBLE: dict[str, tuple[Any, ...]] = {
    "prediction_type": tuple(PREDICTION_NAMES.values()), "clip_sample": (True,), "clip_sample_range": (1,),
    "variance_type": (*VARIANCE_NAMES.values(), "fixed_small_log"), "thresholding": (False,),
    "timestep_spacing": ("leading", "trailing"), "steps_offset": (0,), "rescale_betas_zero_snr": (False, True),
    "predict_epsilon": (True,),  # before 0.10, instead of prediction_type
}  # fmt: skip
KINDS = {
    UNET: ("UNet2DModel", UNET_DEFAULTS, UNET_POSSIBLE),
    SCHEDULER: ("DDPMScheduler", SCHEDULER_DEFAULTS, SCHEDULER_POSSIBLE),
}
"""by file: the class, its defaults, and the values that an argument can have whatever the others are"""


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Errors inside are about this file."""
    try:
        yield
    except ValueError as err:
        raise ValueError(f"{file}: {err}") from err
    except TypeError as err:
        raise ValueError(f"{file}: a value is of the wrong type: {str(err).splitlines()[0]}") from err


def filled(file: str, words: Words) -> Words:
    """A config with diffusers' defaults for what it does not say.

    Raises ValueError if it is of another class, has a value that nothing of ours has, or has an argument that is not
    known here and may matter.
    """
    name, defaults, possible = KINDS[file]
    told = {**defaults, **words}
    with naming(file):
        _demand("_class_name", words.get("_class_name") == name, json.dumps(name), words.get("_class_name"))
        for key, values in possible.items():
            if key in told:
                _demand(key, told[key] in values, _listed(*values), told[key])
        # diffusers passes over what it does not know: leftovers of older versions. A newer one may mean it.
        version = str(words.get("_diffusers_version"))
        for key in sorted(words.keys() - defaults.keys() - possible.keys()) if _is_newer(version) else []:
            _demand(key, key.startswith("_") or not words[key], f"absent, since it is new in {version}", words[key])
    return told


def unet_words(config: UNetConfig) -> Words:
    """A network's shape as UNet2DModel's arguments. Raises ValueError for one that it cannot have."""
    if config.base_channels < 4:  # its time embedding would divide by half of them, less one
        raise ValueError(f"base_channels must be at least 4 for diffusers, got {config.base_channels}")
    if config.channel_mults[0] != 1:  # it has one number for the first level and for what comes before
        raise ValueError(f"channel_mults must begin with 1 for diffusers, got {config.channel_mults}")
    attends = [config.image_size // 2**n in config.attention_resolutions for n in range(len(config.channel_mults))]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        **UNET_DEFAULTS,
        **{key: values[0] for key, values in UNET_POSSIBLE.items()},
        "sample_size": config.image_size,
        "in_channels": config.image_channels,
        "out_channels": config.output_channels,
        "block_out_channels": [config.base_channels * mult for mult in config.channel_mults],
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "layers_per_block": config.num_res_blocks,
        "dropout": config.dropout,
        "attention_head_dim": config.head_channels or None,
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.norm_groups,  # without it, scale_shift takes the norm from the middle
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "num_class_embeds": config.num_classes + 1 if config.num_classes else None,
    }


def unet_config(words: Words, learned_variance: bool, num_classes: int | None) -> UNetConfig:
    """UNet2DModel's arguments (see `filled`) as a network's shape; num_classes is None where nobody knows.

    Raises ValueError for one that ours cannot be.
    """
    with naming(UNET):
        for key, holds, possible in _unet_demands(words, learned_variance, num_classes):
            _demand(key, holds, possible, words[key])
        side, base = words["sample_size"], words["block_out_channels"][0]
        side = side[0] if isinstance(side, list) else side
        attends = [kind == "AttnDownBlock2D" for kind in words["down_block_types"]]
        return UNetConfig(
            image_size=side,
            image_channels=words["in_channels"],
            num_classes=num_classes or 0,
            learned_variance=learned_variance,
            base_channels=base,
            channel_mults=tuple(width // base for width in words["block_out_channels"]),
            num_res_blocks=words["layers_per_block"],
            attention_resolutions=tuple(side // 2**level for level, attend in enumerate(attends) if attend),
            dropout=words["dropout"],
            norm_groups=words["norm_num_groups"],
            head_channels=words["attention_head_dim"] or 0,
            scale_shift_norm=words["resnet_time_scale_shift"] == "scale_shift",
        )


def _unet_demands(words: Words, learned_variance: bool, num_classes: int | None) -> Iterator[tuple[str, bool, str]]:
    """What is asked of an argument given the others: its name, whether that holds, and what is possible."""
    kinds, widths, groups = words["down_block_types"], words["block_out_channels"], words["norm_num_groups"]
    for key in ("in_channels", "layers_per_block", "norm_num_groups"):
        yield key, _is_count(words[key]), "a positive integer"
    yield "down_block_types", {*kinds} <= {"DownBlock2D", "AttnDownBlock2D"}, "of DownBlock2D and AttnDownBlock2D"
    mirrored = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    yield "up_block_types", words["up_block_types"] == mirrored, f"{json.dumps(mirrored)}, by down_block_types"
    yield "block_out_channels", len(widths) == len(kinds) > 0, "one for each of down_block_types"
    multiples = all(_is_count(width) and width % widths[0] == 0 for width in widths)
    yield "block_out_channels", multiples, "whole multiples of the first"
    heads, side = words["attention_head_dim"], words["sample_size"]
    divides = _is_count(heads) and not any(width % heads for width in widths)
    yield "attention_head_dim", heads is None or divides, f"null (one head) or divide each of {widths}"
    square = isinstance(side, list) and len(side) == 2 and side[0] == side[1] and _is_count(side[0])
    yield "sample_size", square or _is_count(side), "the side of a square picture"
    out = words["in_channels"] * (2 if learned_variance else 1)
    yield "out_channels", words["out_channels"] == out, f"{out}, by in_channels and the scheduler's variance_type"
    embedding = (None, 4 * widths[0])
    yield "time_embedding_dim", words["time_embedding_dim"] in embedding, _listed(*embedding)
    norm = words["resnet_time_scale_shift"]
    norms = (groups,) if norm == "scale_shift" else (None, groups)
    yield "attn_norm_num_groups", words["attn_norm_num_groups"] in norms, f"{_listed(*norms)} for {norm}"
    embeds = num_classes + 1 if num_classes else None
    why = (
        f"null without a {EXTRAS} that names the classes" if num_classes is None else f"{_listed(embeds)}, by {EXTRAS}"
    )
    yield "num_class_embeds", words["num_class_embeds"] == embeds, why


def scheduler_words(config: DiffusionConfig, spacing: str) -> Words:
    """A process as DDPMScheduler's arguments, with the spacing of timesteps that its pipeline is to use."""
    words: Words = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        **SCHEDULER_DEFAULTS,
        "num_train_timesteps": config.num_timesteps,
        "prediction_type": PREDICTION_NAMES[config.prediction],
        "variance_type": VARIANCE_NAMES[config.variance],
        "timestep_spacing": spacing,
    }
    if config.schedule not in SCHEDULE_NAMES:  # diffusers' sigmoid is another one
        return {**words, "trained_betas": config.betas().tolist()}
    scale = 1000 / config.num_timesteps if config.schedule == "linear" else 1
    return {
        **words,
        "beta_schedule": SCHEDULE_NAMES[config.schedule],
        "beta_start": 1e-4 * scale,
        "beta_end": 0.02 * scale,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
    }


def diffusion_config(words: Words) -> DiffusionConfig:
    """DDPMScheduler's arguments (see `filled`) as a process, with the loss that is usual for it.

    Raises ValueError for one that ours cannot be.
    """
    with naming(SCHEDULER):
        schedule, zero_snr = _schedule_of(_betas_of(words))
        variance = _key_of(VARIANCE_NAMES, words["variance_type"].removesuffix("_log"))  # the same, by way of logs
        return DiffusionConfig(
            num_timesteps=words["num_train_timesteps"],
            schedule=schedule,
            zero_terminal_snr=zero_snr,
            prediction=_key_of(PREDICTION_NAMES, words["prediction_type"]),
            variance=variance,
            loss="hybrid" if variance == "learned" else "simple",
        )


def _betas_of(words: Words) -> Float64[Tensor, "T"]:
    """The table that DDPMScheduler makes of its arguments, in float64."""
    num_timesteps, trained = words["num_train_timesteps"], words["trained_betas"]
    _demand("num_train_timesteps", _is_count(num_timesteps), "a positive integer", num_timesteps)
    if trained is not None:
        _demand("trained_betas", len(trained) == num_timesteps, f"{num_timesteps} (num_train_timesteps)", len(trained))
        betas = torch.tensor(trained, dtype=torch.float64)
    elif words["beta_schedule"] == "squaredcos_cap_v2":
        betas = cosine_betas(num_timesteps)
    else:
        linear = words["beta_schedule"] == "linear"
        _demand("beta_schedule", linear, _listed(*SCHEDULE_NAMES.values()), words["beta_schedule"])
        betas = torch.linspace(words["beta_start"], words["beta_end"], num_timesteps, dtype=torch.float64)
    return zero_terminal_snr(betas) if words["rescale_betas_zero_snr"] else betas


def _schedule_of(betas: Float64[Tensor, "T"]) -> tuple[Schedule, bool]:
    """Which schedule of ours has this table, and whether with zero terminal SNR. Raises ValueError if none has."""
    num_timesteps = len(betas)
    schedules: tuple[Schedule, ...] = ("linear", "cosine", "sigmoid")
    for schedule in schedules:
        try:
            plain = SCHEDULES[schedule](num_timesteps)
        except ValueError:  # linear, of too few timesteps
            continue
        for zero_snr, table in enumerate([plain, zero_terminal_snr(plain)] if num_timesteps > 1 else [plain]):
            if torch.allclose(betas, table, rtol=1e-5, atol=0):  # a table that was once float32 is 6e-8 off
                return schedule, bool(zero_snr)
    raise ValueError(
        f"betas must be those of linear (beta_start {0.1 / num_timesteps:g}, beta_end {20 / num_timesteps:g}), of "
        f"squaredcos_cap_v2, or trained_betas of our sigmoid, got {betas[0].item():g} to {betas[-1].item():g}"
    )


def _demand(key: str, holds: bool, possible: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key} must be {possible}, got {json.dumps(value)}")


def _listed(*values: object) -> str:
    return " or ".join(json.dumps(value) for value in values)


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_newer(version: str) -> bool:
    """Whether a version of diffusers, if it is one, is after that which this was read against."""
    known, other = ([int(number) for number in re.findall(r"\d+", text)[:2]] for text in (VERSION, version))
    return other > known


def _key_of(names: dict[K, str], name: str) -> K:
    return next(key for key in names if names[key] == name)
