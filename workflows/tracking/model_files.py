"""The files of a logged model, and what vouches for them: their sha256 in a list, whose own is a tag of the version.

A model is refused if a file is missing or another one, if there is one more among its weights or its code, or if one
could be a pickle: nothing here would load it, but somebody's `torch.load` might.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .artifacts import sha256_of

if TYPE_CHECKING:
    from .artifacts import Artifacts

FILES_TAG, WEIGHTS_TAG = "ddpm.files_sha256", "ddpm.weights_sha256"
FOLDER, CODE = "artifacts/model", "code"
"""where MLflow puts an artifact called `model`, and the code that is logged with it"""
SUMS, WEIGHTS = f"{FOLDER}/sha256.json", f"{FOLDER}/model.safetensors"
PICKLED = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
PICKLE_HEADERS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
CACHE = "__pycache__"
"""left beside the code by whoever loads a model out of a folder on this machine; never pulled"""


def write_sums(folder: Path, package: Path, *others: Path) -> str:
    """List the files to be logged (of the model, the code, and others at the top) in `folder`; the list's sha256."""
    files = {f"{FOLDER}/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*") if file.is_file()}
    files |= {f"{CODE}/{package.name}/{file.name}": file for file in package.iterdir()}
    files |= {file.name: file for file in others}
    sums = {name: sha256_of(file) for name, file in files.items()}
    listed = folder / PurePosixPath(SUMS).name
    listed.write_text(json.dumps(sums, indent=2, sort_keys=True) + "\n")
    return sha256_of(listed)


def fetch_model(artifacts: Artifacts, tags: dict[str, str], folder: Path) -> dict[str, bytes]:
    """Have all files of a logged model in a local folder; what an earlier call left there is kept, if it is right.

    Gives back its weights and config, by name. `tags` are those of its version; of one that was registered before
    there was a list, only the weights are vouched for. Raises JobFailed, naming the file, as the module says.
    """
    names = [name for name in artifacts.names() if CACHE not in PurePosixPath(name).parts]
    for name in names:
        if name.lower().endswith(PICKLED):
            raise _pickle(artifacts, name)
    sums = _sums(artifacts, tags, folder, names)
    for name in names:
        file = artifacts.fetch(name, folder, sums.get(name, ""), "that it was registered with")
        if name not in sums and not name.endswith(".safetensors") and _begins_as_pickle(file):
            raise _pickle(artifacts, name)
    files = [file for file in (folder / FOLDER).iterdir() if file.suffix in (".json", ".safetensors")]
    return {file.name: file.read_bytes() for file in sorted(files) if file != folder / SUMS}


def _sums(artifacts: Artifacts, tags: dict[str, str], folder: Path, names: list[str]) -> dict[str, str]:
    """The sha256 of every file that is vouched for. Raises JobFailed if one of them is missing, or there are others."""
    if FILES_TAG not in tags:
        sums = {WEIGHTS: tags[WEIGHTS_TAG]} if WEIGHTS_TAG in tags else {}
    elif SUMS not in names:
        raise artifacts.damaged(f"{SUMS} is missing")
    else:
        listed = artifacts.fetch(SUMS, folder, tags[FILES_TAG], f"in the tag {FILES_TAG}")
        sums = {**json.loads(listed.read_bytes()), SUMS: tags[FILES_TAG]}
        for name in names:
            if name not in sums and PurePosixPath(name).parts[0] in (PurePosixPath(FOLDER).parts[0], CODE):
                raise artifacts.damaged(f"{name} is not among the files that it was registered with")
    for name in sums:
        if name not in names:
            raise artifacts.damaged(f"{name} is missing")
    return sums


def _begins_as_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) in PICKLE_HEADERS


def _pickle(artifacts: Artifacts, name: str) -> Exception:
    return artifacts.damaged(f"{name} could be a pickle, which may run any code where it is loaded")
