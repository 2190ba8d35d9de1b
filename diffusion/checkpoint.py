"""Models and training states as files: safetensors for numbers, JSON for words, `COMMIT` to say that all is there.

Where the files go is the caller's: saving takes `write(name, bytes)`, loading takes `read(name) -> bytes`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from .process import Diffusion, DiffusionConfig
from .unet import UNet, UNetConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Write = Callable[[str, bytes], None]
    Read = Callable[[str], bytes]

WEIGHTS, CONFIG, COMMIT = "model.safetensors", "config.json", "COMMIT"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Model:
    """Everything that is needed to draw samples."""

    unet: UNet
    diffusion: Diffusion
    classes: list[str]
    """names by label; empty for an unconditional model"""
    chunk: int
    """images in every network call of a sampler, see `sample_images`"""
    sampler: dict[str, Any]
    """settings that the model was made to be sampled with, by name"""


def save_model(write: Write, model: Model) -> None:
    """Write `model.safetensors` and `config.json`, which rebuild the model without any other knowledge."""
    weights = {name: tensor.detach().contiguous() for name, tensor in model.unet.state_dict().items()}
    write(WEIGHTS, safetensors.torch.save(weights))
    config = {
        "format_version": FORMAT_VERSION,
        "unet": asdict(model.unet.config),
        "diffusion": asdict(model.diffusion.config),
        "classes": model.classes,
        "chunk": model.chunk,
        "sampler": model.sampler,
    }
    write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load_model(read: Read) -> Model:
    """The model that `save_model` wrote, on the CPU, in float32 and eval mode.

    Raises ValueError if the config is of another format or damaged, or the weights are cut short or of another network.
    """
    try:
        config = json.loads(read(CONFIG))
        version = config["format_version"]
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{CONFIG} is damaged: {type(err).__name__}: {err}") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"model format_version must be {FORMAT_VERSION}, got {version}")
    try:
        lists = {name: tuple(value) for name, value in config["unet"].items() if isinstance(value, list)}
        unet = UNet(UNetConfig(**{**config["unet"], **lists}))
        diffusion = Diffusion(DiffusionConfig(**config["diffusion"]))
        classes, chunk, sampler = config["classes"], config["chunk"], config["sampler"]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{CONFIG} is damaged: {type(err).__name__}: {err}") from None
    if unet.config.learned_variance != (diffusion.config.variance == "learned"):
        raise ValueError(f"{CONFIG} is damaged: the network does not name a variance as its process learns it")
    load_weights(unet, read_tensors(read(WEIGHTS), WEIGHTS))
    return Model(unet.eval(), diffusion, classes, chunk, sampler)


def load_weights(unet: UNet, weights: dict[str, Tensor]) -> None:
    """Copy weights into a network. Raises ValueError, naming the first difference, if they are of another one."""
    check_shapes(shapes_of(unet.state_dict()), shapes_of(weights), "weights are of another network")
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ValueError(f"weights must be finite floating-point numbers; {name} has others")
    unet.load_state_dict(weights)


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], complaint: str) -> None:
    """Raises ValueError, with the complaint and the first difference, if names or shapes are not those expected."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{complaint}: {name} should be {expected.get(name, 'absent')}, is {found.get(name, 'absent')}"
            )


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training run, from which it goes on as if it had never stopped."""

    step: int
    """optimiser steps done"""
    model: dict[str, Tensor]
    emas: list[dict[str, Tensor]]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """what else there is to know, as JSON"""

    def copied(self) -> Checkpoint:
        """The same in CPU memory of its own, which later steps leave as it is."""
        model, optimizer, *emas = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.model, self.optimizer, *self.emas)
        )
        return Checkpoint(self.step, model, emas, optimizer, dict(self.state))


def save_checkpoint(write: Write, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint and, last, `COMMIT` with the sha256 of each."""
    digests: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        write(name, data)
        digests[name] = hashlib.sha256(data).hexdigest()

    put("model.safetensors", safetensors.torch.save(_contiguous(checkpoint.model)))
    for i, ema in enumerate(checkpoint.emas):
        put(f"ema-{i}.safetensors", safetensors.torch.save(_contiguous(ema)))
    put("optimizer.safetensors", safetensors.torch.save(_contiguous(checkpoint.optimizer)))
    state = {"step": checkpoint.step, "num_emas": len(checkpoint.emas), **checkpoint.state}
    put("state.json", (json.dumps(state, indent=2) + "\n").encode())
    write(COMMIT, (json.dumps(digests, indent=2) + "\n").encode())


def load_checkpoint(read: Read) -> Checkpoint:
    """The checkpoint that `save_checkpoint` wrote. Raises ValueError if it is not whole (see `COMMIT`)."""
    try:
        digests: dict[str, str] = json.loads(read(COMMIT))
        files = {name: read(name) for name in digests}
    except (FileNotFoundError, ValueError, TypeError) as err:
        raise ValueError(f"checkpoint is not whole: {err}") from err
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            raise ValueError(f"checkpoint is not whole: {name} does not have the sha256 that COMMIT says")
    try:
        state = json.loads(files["state.json"])
        emas = [safetensors.torch.load(files[f"ema-{i}.safetensors"]) for i in range(state.pop("num_emas"))]
        model, optimizer = (safetensors.torch.load(files[f"{name}.safetensors"]) for name in ("model", "optimizer"))
    except KeyError as err:
        raise ValueError(f"checkpoint is not whole: COMMIT does not name {err}") from err
    return Checkpoint(state.pop("step"), model, emas, optimizer, state)


def read_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError, naming the file, if it is damaged."""
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as err:
        raise ValueError(f"{name} is damaged: {err}") from err


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
