"""Whether manifests are what Kubernetes and KubeRay say that they are."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .documents import Document, Problem

KUBERNETES = "1.32"
"""the oldest that the manifests are for"""
RAY = "ray.io/v1"
WITHOUT_SCHEMA = ("kustomize.config.k8s.io", "monitoring.coreos.com")


class Schemas:
    """Those of core kinds, which kubernetes-validate has, and those of KubeRay's, which are in a folder."""

    def __init__(self, kuberay: Path) -> None:
        self.kuberay = kuberay
        self.skipped: list[str] = []
        if not kuberay.is_dir():
            self.skipped.append(f"skipped: the schemas of {RAY}: there is no folder {kuberay}")

    def problems(self, document: Document) -> Iterator[Problem]:
        """Where a manifest differs from its kind's schema."""
        api = str(document.body["apiVersion"])
        if api.startswith(WITHOUT_SCHEMA):
            return
        text = json.dumps(document.body)
        found = self._of_ray(document.kind, text) if api == RAY else _of_kubernetes(text)
        if found is not None:
            yield document.problem(*found)

    def _of_ray(self, kind: str, text: str) -> tuple[str, str] | None:
        if self.skipped:
            return None
        file = self.kuberay / f"{kind}.v1.json"
        return _differs(file, text) if file.exists() else ("kind", f"must be one of KubeRay's, got {kind}")


@cache
def _of_kubernetes(text: str) -> tuple[str, str] | None:
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as err:
        return _path(err.path), err.message[:300]
    except kubernetes_validate.SchemaNotFoundError as err:
        return "kind", err.message
    return None


@cache
def _differs(file: Path, text: str) -> tuple[str, str] | None:
    error = best_match(_validator(file).iter_errors(json.loads(text)))
    return None if error is None else (_path(error.path), error.message[:300])


@cache
def _validator(file: Path) -> Draft202012Validator:
    schema = json.loads(file.read_text())
    return Draft202012Validator(strict(schema.get("openAPIV3Schema", schema)))


def strict(schema: Any) -> Any:
    """The same schema with no room for what it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    if schema.get("type") == "object" and list(schema) == ["type"]:
        made.pop("additionalProperties", None)  # metadata: Kubernetes' own, without a list of what it may hold
    return made


def _path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".") or "(top)"
