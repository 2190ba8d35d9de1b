"""What lets `verify` tell that a set's own records, dataset.json and the manifest, are as they were committed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..files import Folder

MANIFEST = "manifest.parquet"


def seal_of(value: dict[str, Any]) -> str:
    """The sha256 of all that `dataset.json` says, but for the seal itself."""
    said = {name: part for name, part in value.items() if name != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def manifest_parts(folder: Folder) -> list[str]:
    """The names of all files in the manifest's folder, sorted."""
    return [f"{MANIFEST}/{name}" for name in folder.names(MANIFEST) if not name.startswith(".")]
