"""`ddpm average`: which average of the weights is best can be found after the training, from the snapshots it left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from diffusion.checkpoint import load_model, load_weights
from diffusion.ema import Snapshot, reconstruct

from .progress import say
from .tracking import DIGEST_TAG, URI_TAG, ModelVersion, Tracker, model_version, pull_model
from .train import register
from .training.checkpoints import read_snapshot, snapshots

if TYPE_CHECKING:
    from .storage import Environment


def run(environment: Environment, name: str, std: float, step: int = 0) -> ModelVersion:
    """A new version of the model, whose weights are the average of relative width `std` that ends at `step`.

    Raises ValueError if the training left no snapshots, or none as late as `step`, or for an impossible std.
    """
    tracker = Tracker(environment)
    version = model_version(tracker, name)
    folder = environment.training(tracker.run(version.run_id).key)
    if not (known := snapshots(folder)):
        raise ValueError(
            f"{version.uri} was trained without snapshots; train another one with --ema-stds 0.05 0.1 and a "
            f"--snapshot-every"
        )
    wanted = Snapshot(std, step or known[-1].num_updates)
    weights = reconstruct(known, partial(read_snapshot, folder), wanted)
    say(f"average: width {std:g} at step {wanted.num_updates}, from {len(known)} snapshots")
    model = load_model(pull_model(version).__getitem__)
    load_weights(model.unet, weights)
    lineage = {tag: version.tags[tag] for tag in (DIGEST_TAG, URI_TAG)}
    tags = {**lineage, "ddpm.ema_std": f"{std:g}", "ddpm.ema_step": str(wanted.num_updates)}
    return register(tracker, version.run_id, version.name, model, tags)
