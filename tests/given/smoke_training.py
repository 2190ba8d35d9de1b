"""`ddpm train smoke` as a process of its own, and what it leaves."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

DDPM = [sys.executable, "-m", "workflows.cli"]


def shard_smoke(out, *words):
    """The shard set that it trains on, at `out`."""
    subprocess.run([*DDPM, "shard", "smoke", "--out", str(out), "--storage", str(out), *words], check=True)
    return str(out)


def train_command(data, storage, steps, *words):
    """The command, for so many steps."""
    return [*DDPM, "train", "smoke", "--data", data, "--storage", str(storage), f"--steps={steps}", *words]


def newest_step(storage):
    """The step of the newest checkpoint in a local storage, 0 if there is none."""
    return max((int(path.parent.name[5:]) for path in Path(storage).glob("train/*/*/step-*/COMMIT")), default=0)


def final_weights(storage, steps):
    """The averages after the last step."""
    (file,) = Path(storage).glob(f"train/*/attempt-*/step-{steps:08d}/ema-0.safetensors")
    return load_file(file)


def differing(weights, others):
    """The names of the tensors that are not bitwise the same in both."""
    return [name for name in weights.keys() | others.keys() if not weights[name].equal(others[name])]
