"""Models as folders of the diffusers library, out and in: `unet/`, `scheduler/` and `model_index.json`.

Nothing of diffusers is needed here: its arguments are in `diffusers_config`, its names of weights in
`diffusers_weights`. What its format has no place for (classes, chunk, sampler, loss) is in a file of our own,
`ddpm.json`, which diffusers leaves alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from .checkpoint import Model
from .diffusers_config import (
    EXTRAS,
    SCHEDULER,
    UNET,
    VERSION,
    diffusion_config,
    filled,
    naming,
    scheduler_words,
    unet_config,
    unet_words,
)  # fmt: skip
from .diffusers_weights import diffusers_weights, load_diffusers_weights
from .process import Diffusion
from .unet import UNet

if TYPE_CHECKING:
    from .checkpoint import Read, Write
    from .diffusers_config import Words

PIPELINE, WEIGHTS = "model_index.json", "unet/diffusion_pytorch_model.safetensors"
FORMAT_VERSION = 1
CHUNK = 16
"""images in a call of a model that does not say, see `sample_images`"""


def export_diffusers(write: Write, model: Model) -> None:
    """Write a folder that `DDPMPipeline.from_pretrained` opens.

    Of a class-conditional model only `unet/` and `scheduler/`, for UNet2DModel and DDPMScheduler: that pipeline takes
    no labels. The last class embedding is that of the null class. (With spacing=trailing that pipeline adds noise even
    to the finished picture, unless the variance is fixed_small or every timestep is visited.)
    Raises ValueError for a network that diffusers cannot have: base_channels below 4, channel_mults not from 1.
    """
    config, process = model.unet.config, model.diffusion.config
    network = unet_words(config)
    assert len(model.classes) == config.num_classes, "a name for every class"
    if not config.num_classes:
        parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
        _write_json(write, PIPELINE, {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION, **parts})
    _write_json(write, UNET, network)
    write(WEIGHTS, diffusers_weights(model.unet))
    spacing = model.sampler.get("spacing", "auto")
    if spacing == "auto":
        spacing = "trailing" if process.zero_terminal_snr else "leading"
    _write_json(write, SCHEDULER, scheduler_words(process, spacing))
    extras = {
        "format_version": FORMAT_VERSION,
        "classes": model.classes,
        "chunk": model.chunk,
        "sampler": model.sampler,
        "training": {"loss": process.loss, "snr_gamma": process.snr_gamma},
    }
    _write_json(write, EXTRAS, extras)


def import_diffusers(read: Read) -> Model:
    """The model in a folder that `export_diffusers` or diffusers' own `save_pretrained` wrote.

    It is on the CPU, in float32 and eval mode. `read` raises FileNotFoundError for a file that is not there. Without
    a `ddpm.json` the chunk is 16, the sampler has the scheduler's spacing alone, the loss is the usual one, and the
    model must be unconditional. attention_resolutions are those that a level has. Raises ValueError, naming the key,
    its value and what is possible, for a model that ours cannot be, and for files missing, damaged or at odds.
    """
    network, scheduler = (filled(file, _parsed(file, _read(read, file))) for file in (UNET, SCHEDULER))
    extras = _extras(read)
    process = diffusion_config(scheduler)
    with naming(EXTRAS):
        diffusion = Diffusion(replace(process, **extras.get("training", {})))
    num_classes = len(extras["classes"]) if extras else None
    unet = UNet(unet_config(network, process.variance == "learned", num_classes))
    load_diffusers_weights(unet, WEIGHTS, _read(read, WEIGHTS))
    usual = {"classes": [], "chunk": CHUNK, "sampler": {"spacing": scheduler["timestep_spacing"]}}
    classes, chunk, sampler = (extras.get(key, value) for key, value in usual.items())
    return Model(unet.eval(), diffusion, classes, chunk, sampler)


def _extras(read: Read) -> Words:
    """What `ddpm.json` says; nothing if there is none. Raises ValueError if it is damaged or of another format."""
    try:
        extras = _parsed(EXTRAS, read(EXTRAS))
    except FileNotFoundError:
        return {}
    if extras.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{EXTRAS}: format_version must be {FORMAT_VERSION}, got {extras.get('format_version')}")
    for key, kind in (("classes", list), ("chunk", int), ("sampler", dict), ("training", dict)):
        if not isinstance(extras.get(key), kind):
            raise ValueError(f"{EXTRAS}: {key} must be a {kind.__name__}, got {extras.get(key)!r}")
    return extras


def _read(read: Read, name: str) -> bytes:
    """A file of the folder; old folders have them all at the top. Raises ValueError if it is not there."""
    for place in (name, name.rpartition("/")[2]):
        try:
            return read(place)
        except FileNotFoundError:
            continue
    raise ValueError(f"{name} is missing, of a diffusers folder whose weights are safetensors in one file")


def _parsed(file: str, data: bytes) -> Words:
    try:
        words = json.loads(data)
    except ValueError as err:
        raise ValueError(f"{file} is not JSON: {err}") from err
    if not isinstance(words, dict):
        raise ValueError(f"{file} must be a JSON object, got {words!r}")
    return words


def _write_json(write: Write, name: str, words: Words) -> None:
    write(name, (json.dumps(words, indent=2) + "\n").encode())
