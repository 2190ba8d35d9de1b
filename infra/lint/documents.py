"""Manifests as they lie in files, those inside ConfigMaps too, and the problems that are found in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KUSTOMIZATION = "kustomization.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""ten times as fast where PyYAML was built with it"""


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    file: str
    path: str
    rule: str

    def __str__(self) -> str:
        return f"{self.file}: {self.path}: {self.rule}"


@dataclass(frozen=True)
class Document:
    """A manifest."""

    file: str
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it describes."""
        return str(self.body.get("kind", ""))

    @property
    def name(self) -> str:
        """Of what it describes."""
        return str(self.body.get("metadata", {}).get("name", ""))

    def problem(self, path: str, rule: str) -> Problem:
        """One at a path in this manifest."""
        return Problem(self.file, f"{self.kind}/{self.name} {path}".rstrip(), rule)


def parsed(text: str) -> list[Any]:
    """The documents of a YAML stream."""
    return [body for body in yaml.load_all(text, Loader=LOADER) if body is not None]


def read_documents(file: Path, name: str) -> list[Document]:
    """The manifests in a file, and those in its ConfigMaps. Raises ValueError if it is no YAML of such."""
    try:
        bodies = parsed(file.read_text())
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from None
    if not all(isinstance(body, dict) and {"apiVersion", "kind"} <= body.keys() for body in bodies):
        raise ValueError("every document must have an apiVersion and a kind")
    return [document for body in bodies for document in unpacked(Document(name, body))]


def unpacked(document: Document) -> Iterator[Document]:
    """A manifest, and what it carries for somebody else to create."""
    yield document
    if document.kind == "ConfigMap":
        for key, text in document.body.get("data", {}).items():
            for body in parsed(text) if key.endswith((".yaml", ".json")) else ():
                if isinstance(body, dict) and "kind" in body:
                    yield Document(f"{document.file} ({document.name}: {key})", body)


def found_in(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in a manifest: paths and values, from the outside in."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from found_in(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from found_in(inner, f"{path}[{index}]")
