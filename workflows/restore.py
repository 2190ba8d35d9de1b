"""`ddpm restore`: a Ray job of its own mends pictures with a registered model, from files to files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from diffusion.data.images import decode_png, encode_png
from diffusion.data.pictures import FolderPictures, Pictures, open_pictures, read_mask
from diffusion.data.shard_set import DATASET
from diffusion.files import Folder
from diffusion.grid import image_grid
from diffusion.metrics.pixels import psnr
from diffusion.restore import RestoreConfig, damaged, restore_images
from diffusion.seeding import generator, key
from diffusion.settings import narrowed

from .cluster.connection import connected, drawing_workers
from .cluster.tasks import make_missing
from .config_file import to_plain
from .drawing import ModelFiles, Part, check_sampler, loaded, model_files, parts_of
from .progress import say
from .storage import check_storage, locked
from .tracking import URI_TAG, ModelVersion, TrackedRun, Tracker, lineage_tags, pull_model

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8
    from torch import Tensor

    from diffusion.checkpoint import Model

    from .config import Config, RestoreStage
    from .storage import Environment

ROWS, CONFIG = "restored.json", "config.json"
GRID = "grid.png"
GRID_COLUMNS = 15
GRID_PIXELS = 720


@dataclass(frozen=True)
class RestoreRun:
    """What a restore run left: `pictures/` (and `damaged/`, if it did the damage), `restored.json` and the grid."""

    folder: Folder
    tracked: TrackedRun


class Row(NamedTuple):
    """A picture that was mended."""

    name: str
    """within the source"""
    restored: str
    """the file within `pictures/`"""
    seed: int
    pixels_sha256: str
    """of the picture as it came"""
    restored_sha256: str
    """of the mended file"""
    error_damaged: float
    """mean squared error, in squared 8-bit steps, of what was damaged here; 0 if nothing was"""
    error_restored: float


def run(config: Config, environment: Environment, model: ModelVersion, out: Folder | None = None) -> RestoreRun:
    """Mend the pictures of the source, or those that are missing, into `out`, and log what came of it.

    The names of all pictures are held in memory: this is for collections, not for crawls. Raises ValueError for
    settings that the model cannot serve, for a picture or mask that is not there, not whole or of another size, and
    for an `out` that holds something else.
    """
    check_storage(environment)
    stage = _with_source(config.restore, model)
    files = model_files(model.uri, pull_model(model))
    check_sampler(stage, loaded(files))
    pictures, masks = _inputs(stage, loaded(files))
    if not (names := list(islice(pictures.names(), stage.num or None))):
        raise ValueError(f"source must have at least one picture; there is none in {stage.source}")
    run_key = restore_key(stage, model, pictures, masks)
    check_targets(names)
    folder = out or environment.restored(run_key)
    with locked(environment, f"restore-{hashlib.sha256(folder.uri.encode()).hexdigest()[:16]}"):
        if out is not None:
            check_out(out, stage, run_key)
        tracker = Tracker(environment)
        tracked = tracker.finished(model.name, "restore", run_key)
        if tracked is not None and folder.exists(ROWS):
            say(f"restore: reused {folder.uri}")
            return RestoreRun(folder, tracked)
        run_id = tracker.start(model.name, "restore", run_key, lineage_tags(model), to_plain(stage))
        with tracker.ending(run_id):
            folder.write_json(CONFIG, {**to_plain(stage), "key": run_key})
            request = _Request(stage, files, names, folder.uri, run_key)
            with connected(environment, stage):
                parts = make_missing(
                    "restore", parts_of(len(names), loaded(files).chunk), partial(_found, request), _mend, request,
                    drawing_workers(stage), len, len(names),
                )  # fmt: skip
            _log(tracker, run_id, [row for rows in parts for row in rows], stage, folder, pictures)
        return RestoreRun(folder, tracker.run(run_id))


def check_out(out: Folder, stage: RestoreStage, run_key: str) -> None:
    """Raises ValueError if `out` lies in the source or the masks, or holds anything but an attempt at this very run."""
    for place in filter(None, (stage.source, stage.masks)):
        if f"{out.path}/".startswith(f"{Folder(place).path.rstrip('/')}/"):
            raise ValueError(f"out must not lie in the source or the masks, got {out.uri}: it would be mended in turn")
    if out.names() and not (out.exists(CONFIG) and run_key.encode() in out.read(CONFIG)):
        raise ValueError(f"out must be a folder that is empty or new, or this very run's, got {out.uri}")


def target(name: str) -> str:
    """The file that a picture becomes: the same name, with .png after another suffix than that."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def check_targets(names: list[str]) -> None:
    """Raises ValueError if two pictures would become one file."""
    seen: dict[str, str] = {}
    for name in names:
        if (first := seen.setdefault(target(name), name)) != name:
            raise ValueError(f"{first} and {name} would both become {target(name)}; rename one of them")


def restore_key(stage: RestoreStage, model: ModelVersion, pictures: Pictures, masks: Pictures | None) -> str:
    """The identity of a restore run: the weights, the settings, and what is mended (16 hex characters)."""
    inputs = [pictures.fingerprint(), masks.fingerprint() if masks else "", stage.num]
    parts = [model.tags["ddpm.weights_sha256"], model.uri, narrowed(RestoreConfig, stage), stage.seed, inputs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def picture_seed(seed: int, pixels: UInt8[Tensor, "c h w"]) -> int:
    """In [0, 2^63), from the pixels themselves: a picture is mended alike whatever it is called and lies beside."""
    return key(seed, f"restore {_sha256(pixels)}") >> 65


@dataclass(frozen=True)
class _Request:
    """What all tasks of a restore run share."""

    stage: RestoreStage
    model: ModelFiles
    names: list[str]
    out_uri: str
    key: str


def _mend(part: Part, request: _Request) -> list[Row]:
    """In a Ray task: mend the pictures of one part and write them."""
    stage, model, out = request.stage, loaded(request.model), Folder(request.out_uri)
    names = request.names[part.start : part.stop]
    pictures, masks = _inputs(stage, model)
    originals = torch.from_numpy(np.stack([pictures.read(name) for name in names]))
    seeds = [picture_seed(stage.seed, pixels) for pixels in originals]
    given, keep = _damage(originals, names, seeds, stage, masks)
    mended = restore_images(model.unet, model.diffusion, given, keep, seeds, stage, model.chunk)
    rows = []
    for name, seed, original, before, after in zip(names, seeds, originals, given, mended, strict=True):
        file = target(name)
        data = _png(after)
        out.write(f"pictures/{file}", data)
        if "damaged" in _folders(stage):
            out.write(f"damaged/{file}", _png(before))
        errors = (_error(before, original), _error(after, original)) if stage.damage != "none" else (0.0, 0.0)
        rows.append(Row(name, file, seed, _sha256(original), hashlib.sha256(data).hexdigest(), *errors))
    out.write_json(_part_name(request, part), rows)
    return rows


def _damage(
    originals: UInt8[Tensor, "n c h w"],
    names: list[str],
    seeds: list[int],
    stage: RestoreStage,
    masks: FolderPictures | None,
) -> tuple[UInt8[Tensor, "n c h w"], Bool[Tensor, "n 1 h w"] | None]:
    """What the model is given, and which pixels of it are whole: by the masks, or by the damage that is done here."""
    if masks is not None:
        keep = torch.from_numpy(np.stack([read_mask(masks, name) for name in names]))
        return originals.masked_fill(~keep, 127), keep
    draws = [generator(seed, "damage").standard_normal(originals.shape[1:], dtype=np.float32) for seed in seeds]
    return damaged(originals, stage, torch.from_numpy(np.stack(draws)))


def _with_source(stage: RestoreStage, model: ModelVersion) -> RestoreStage:
    """The same with source and damage resolved. Raises ValueError where whole pictures would be taken as damaged."""
    source = Folder(stage.source or model.tags[URI_TAG])
    held_out, damage = source.exists(DATASET), stage.damage
    if damage == "auto":
        damage = ("noise" if stage.noise_std else "box") if held_out and not stage.masks else "none"
    if held_out and damage == "none" and not stage.masks:
        raise ValueError("damage must be box, noise or blur for held-out pictures, which are whole, got none")
    return replace(stage, source=source.uri, damage=damage)


def _inputs(stage: RestoreStage, model: Model) -> tuple[Pictures, FolderPictures | None]:
    """The pictures to mend, and their masks where there are any."""
    shape = model.unet.config
    masks = FolderPictures(stage.masks, shape.image_size, channels=1) if stage.masks else None
    return open_pictures(stage.source, shape.image_size, shape.image_channels), masks


def _part_name(request: _Request, part: Part) -> str:
    return f"parts/{request.key}-{part.number:06d}.json"


def _found(request: _Request, part: Part) -> list[Row] | None:
    """What an earlier attempt left of a part."""
    out, name = Folder(request.out_uri), _part_name(request, part)
    return [Row(*row) for row in out.read_json(name)] if out.exists(name) else None


def _log(tracker: Tracker, run_id: str, rows: list[Row], stage: RestoreStage, out: Folder, originals: Pictures) -> None:
    """The pictures, the grid and the metrics into MLflow; `restored.json`, written last, says that all is there."""
    metrics = {"n": float(len(rows))}
    if stage.damage != "none":
        metrics["psnr_damaged"] = psnr(float(np.mean([row.error_damaged for row in rows])))
        metrics["psnr"] = psnr(float(np.mean([row.error_restored for row in rows])))
    tracker.log_metrics(run_id, metrics)
    out.write(GRID, encode_png(_grid(rows[:GRID_COLUMNS], stage, out, originals)))
    out.delete("parts")
    out.write_json(ROWS, [row._asdict() for row in rows])
    with TemporaryDirectory() as temporary:
        for name in (GRID, CONFIG, ROWS):
            (Path(temporary) / name).write_bytes(out.read(name))
        for folder in _folders(stage):
            (out / folder).download(Path(temporary) / folder)
        tracker.log_folder(run_id, Path(temporary), "restored")


def _folders(stage: RestoreStage) -> list[str]:
    """Those of a restore run: what was damaged is kept beside what came of it where the damage was done here."""
    return ["damaged", "pictures"] if stage.damage != "none" or stage.masks else ["pictures"]


def _grid(rows: list[Row], stage: RestoreStage, out: Folder, originals: Pictures) -> UInt8[np.ndarray, "h w c"]:
    """A row of damaged pictures where the damage was done here; under it the mended ones; under it what was given."""
    lines = [
        [decode_png(out.read(f"{folder}/{row.restored}")).transpose(2, 0, 1) for row in rows]
        for folder in _folders(stage)
    ]
    lines.append([originals.read(row.name) for row in rows])
    images = torch.from_numpy(np.stack([image for line in lines for image in line]))
    return image_grid(images, len(rows), GRID_PIXELS)


def _png(pixels: UInt8[Tensor, "c h w"]) -> bytes:
    return encode_png(pixels.permute(1, 2, 0).numpy())


def _sha256(pixels: UInt8[Tensor, "c h w"]) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def _error(picture: UInt8[Tensor, "c h w"], original: UInt8[Tensor, "c h w"]) -> float:
    return float((picture.double() - original.double()).square().mean())
