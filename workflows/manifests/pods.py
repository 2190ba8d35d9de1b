"""What all our pods have in common: nobody's root, nothing to write on but what is mounted, requests and limits."""

from __future__ import annotations

from typing import Any

USER = 1000
"""of the image"""


def resources(cpus: float, memory: str, **more: int) -> dict[str, Any]:
    """Requests, and the same as limits: Ray counts what it may use by them."""
    amounts = {"cpu": f"{cpus:g}", "memory": memory, **{name: str(amount) for name, amount in more.items()}}
    return {"requests": amounts, "limits": dict(amounts)}


def container_security() -> dict[str, Any]:
    """Of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security(user: int = USER) -> dict[str, Any]:
    """Of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container(name: str, image: str, amounts: dict[str, Any], writable: dict[str, str], **more: Any) -> dict[str, Any]:
    """A container; `writable` maps names of volumes to where they are mounted."""
    mounts = [{"name": volume, "mountPath": path} for volume, path in writable.items()]
    return {
        "name": name,
        "image": image,
        "resources": amounts,
        "securityContext": container_security(),
        "volumeMounts": [*mounts, *more.pop("volumeMounts", [])],
        **more,
    }


def pod(containers: list[dict[str, Any]], volumes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A pod's spec. Without links to services: that of `mlflow` would set MLFLOW_PORT, which MLflow reads."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": containers,
        "volumes": volumes,
        **more,
    }


def scratch(name: str, size: str) -> dict[str, Any]:
    """A volume that lives as long as its pod."""
    return {"name": name, "emptyDir": {"sizeLimit": size}}


def secret_env(name: str, secret: str, key: str) -> dict[str, Any]:
    """A variable whose value is a Secret's."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def label_env(name: str, label: str) -> dict[str, Any]:
    """A variable whose value is a label of the pod's own."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}
