"""Kustomizations: built by kustomize where there is one, else put together by ourselves, as ours only name files."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from .documents import KUSTOMIZATION, Document, Problem, parsed, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


def build_problems(root: Path, judge: Callable[[Document], Iterable[Problem]]) -> Iterator[Problem]:
    """What is wrong with any kustomization under a folder, as a whole."""
    for file in sorted(root.rglob(KUSTOMIZATION)):
        folder, name = file.parent, str(file.relative_to(root.parent))
        named = set(yaml.safe_load(file.read_text()).get("resources", []))
        for orphan in sorted({path.name for path in folder.glob("*.yaml")} - named - {KUSTOMIZATION}):
            yield Problem(name, "resources", f"must name {orphan}, which lies beside it")
        try:
            bodies = build(folder)
        except ValueError as err:
            yield Problem(name, "resources", str(err))
            continue
        yield from _twice(bodies, name)
        for body in bodies:
            for document in unpacked(Document(f"{name} (built)", body)):
                yield from judge(document)


def build(folder: Path) -> list[dict[str, Any]]:
    """All manifests of a kustomization. Raises ValueError if it cannot be built."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(" ".join(done.stderr.split()))
            return parsed(done.stdout)
    return composed(folder)


def composed(folder: Path) -> list[dict[str, Any]]:
    """The same without kustomize. Raises ValueError for a resource that is not there, or that only kustomize can do."""
    kustomization = yaml.safe_load((folder / KUSTOMIZATION).read_text())
    if unknown := sorted(set(kustomization) - {"apiVersion", "kind", "resources"}):
        raise ValueError(f"{', '.join(unknown)} can be built by kustomize alone, which is not here")
    bodies: list[dict[str, Any]] = []
    for name in kustomization.get("resources", []):
        path = (folder / name).resolve()
        if not path.exists():
            raise ValueError(f"must name what is there, got {name}")
        bodies += composed(path) if path.is_dir() else parsed(path.read_text())
    return bodies


def _twice(bodies: list[dict[str, Any]], file: str) -> Iterator[Problem]:
    seen = set()
    for body in bodies:
        meta = body.get("metadata", {})
        what = (body.get("kind"), meta.get("namespace"), meta.get("name"))
        if what in seen:
            yield Problem(file, f"{what[0]}/{what[2]}", "must be described once")
        seen.add(what)
