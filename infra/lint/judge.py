"""All the rules on all that infra/ holds."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from .build import build_problems
from .cluster_rules import cluster_problems
from .documents import KUSTOMIZATION, Document, Problem, read_documents
from .image import compose_problems, dockerfile_problems
from .pods import pod_problems, secret_problems
from .ray_rules import ray_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .schemas import Schemas

OURS = Path(__file__).parents[1]


def problems(folder: Path, schemas: Schemas) -> list[Problem]:
    """All that is wrong under a folder laid out as infra/. What kustomize builds is judged once its parts are right."""
    found = [*_of_files(folder, schemas), *_of_image(folder)]
    judge = partial(_of_document, schemas=schemas, folder=folder)
    return found or list(build_problems(folder / "kubernetes", judge))


def _of_files(folder: Path, schemas: Schemas) -> Iterator[Problem]:
    for file in sorted((folder / "kubernetes").rglob("*.yaml")):
        name = str(file.relative_to(folder))
        try:
            documents = read_documents(file, name)
        except ValueError as err:
            yield Problem(name, "(top)", str(err))
            continue
        if file.name != KUSTOMIZATION:
            yield from chain.from_iterable(_of_document(document, schemas, folder) for document in documents)


def _of_document(document: Document, schemas: Schemas, folder: Path) -> Iterator[Problem]:
    yield from schemas.problems(document)
    yield from pod_problems(document)
    yield from secret_problems(document)
    yield from cluster_problems(document)
    if document.body["apiVersion"] == "ray.io/v1":
        yield from ray_problems(document, _ray_version(folder))


def _ray_version(folder: Path) -> str:
    given = folder / "constraints.txt"
    lines = (given if given.exists() else OURS / "constraints.txt").read_text().splitlines()
    return next((line.removeprefix("ray==") for line in lines if line.startswith("ray==")), "")


def _of_image(folder: Path) -> Iterator[Problem]:
    for name, judge in (("Dockerfile", dockerfile_problems), ("compose.yaml", compose_problems)):
        if (folder / name).exists():  # a folder of manifests for one cluster has no image of its own
            yield from judge((folder / name).read_text(), name)
