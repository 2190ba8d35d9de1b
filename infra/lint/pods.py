"""Rules for pods, wherever they are described: pinned, nobody's root, with requests, and with no secret in clear."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from workflows.manifests.site import is_pinned

from .documents import found_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .documents import Document, Problem

SECRET_NAME = re.compile(r"password|passwd|secret|token|credential|(access|private|api|session)_?key", re.IGNORECASE)
SECRET_TEXT = re.compile(r"://[^/\s:@$]+:[^/\s@$]+@|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")
HOST = ("hostNetwork", "hostPID", "hostIPC")


def pod_problems(document: Document) -> Iterator[Problem]:
    """What is wrong with its pods."""
    for path, value in found_in(document.body):
        if isinstance(value, dict) and isinstance(value.get("containers"), list):
            for at, rule in _pod(value):
                yield document.problem(f"{path}{at}", rule)


def secret_problems(document: Document) -> Iterator[Problem]:
    """What it gives away."""
    if document.kind == "Secret":
        yield document.problem("", "a Secret's values must not be in a file: make it in the cluster")
    for path, value in found_in(document.body):
        if isinstance(value, str) and SECRET_TEXT.search(value):
            yield document.problem(path, "a secret must not stand in clear")
        if isinstance(value, dict) and SECRET_NAME.search(str(value.get("name", ""))) and value.get("value"):
            yield document.problem(f"{path}.value", f"{value['name']} must come from a Secret (valueFrom.secretKeyRef)")
        if document.kind == "ConfigMap" and path.startswith("data.") and SECRET_NAME.search(path):
            yield document.problem(path, "a ConfigMap must hold no secret")


def _pod(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    security = pod.get("securityContext", {})
    for name in HOST:
        if pod.get(name):
            yield f".{name}", "must not be set: a pod has its own"
    for index, volume in enumerate(pod.get("volumes", [])):
        if "hostPath" in volume:
            yield f".volumes[{index}]", "hostPath must not be used: it is the node's own disk"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield ".securityContext.seccompProfile", "type must be RuntimeDefault"
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(pod.get(kind, [])):
            for at, rule in _container(container, security):
                yield f".{kind}[{index}]{at}", rule


def _container(container: dict[str, Any], pod_security: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not is_pinned(str(container.get("image", ""))):
        yield ".image", f"must have a tag other than latest, or a digest, got {container.get('image')!r}"
    yield from requests(container.get("resources", {}))
    yield from unprivileged(container.get("securityContext", {}), pod_security)


def requests(amounts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is missing of a container's resources."""
    for name in ("cpu", "memory"):
        if name not in amounts.get("requests", {}):
            yield f".resources.requests.{name}", "must be given"
    if "memory" not in amounts.get("limits", {}):
        yield ".resources.limits.memory", "must be given"


def unprivileged(security: dict[str, Any], pod_security: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a container may do that it should not."""
    both = {**pod_security, **security}
    if not both.get("runAsNonRoot") or both.get("runAsUser") == 0:
        yield ".securityContext", "must not be root: runAsNonRoot true, runAsUser not 0"
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield ".securityContext.allowPrivilegeEscalation", "must be false, and privileged not set"
    if not security.get("readOnlyRootFilesystem"):
        yield ".securityContext.readOnlyRootFilesystem", "must be true: what is written to is mounted"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield ".securityContext.capabilities.drop", "must be ALL"
