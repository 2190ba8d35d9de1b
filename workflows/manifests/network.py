"""Who may talk to whom. What is not allowed here is refused, by a network plugin that heeds NetworkPolicies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .site import CLIENT_LABEL, metadata

if TYPE_CHECKING:
    from .site import Site

RAY = {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}
"""all pods of Ray clusters in the namespace: KubeRay labels them"""
CLIENTS = {"podSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}
ANYWHERE_BUT_METADATA = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}
"""the cloud's metadata service would hand out the node's own credentials"""
METRICS = (8080, 44217, 44227)
"""of every Ray pod; of the head's autoscaler; of its dashboard"""


def app(name: str) -> dict[str, Any]:
    """The pods of one of our own services."""
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}


def everything_in(namespace: str) -> dict[str, Any]:
    """The pods of a namespace."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


def policies(site: Site) -> list[dict[str, Any]]:
    """All of them: nothing comes in but what one of them lets in."""
    return [
        _policy(site, "nothing-comes-in", {}, ingress=[]),
        _policy(
            site,
            "ray-nodes",
            RAY["podSelector"],
            ingress=[_from([RAY]), _from([everything_in(site.monitoring)], *METRICS)],
            egress=[_to([ANYWHERE_BUT_METADATA]), _dns()],
        ),
        _policy(
            site,
            "ray-dashboard",
            {"matchLabels": {"ray.io/node-type": "head"}},
            ingress=[_from([everything_in(site.operator), CLIENTS], 8265)],
        ),
        _policy(
            site,
            "mlflow",
            app("mlflow")["podSelector"],
            ingress=[_from([RAY, CLIENTS], 5000)],
            egress=[
                _to([app("postgres")], 5432),
                _to([app("object-store"), ANYWHERE_BUT_METADATA], port_of(site.object_store)),
                _dns(),
            ],
        ),
        _policy(site, "postgres", app("postgres")["podSelector"], ingress=[_from([app("mlflow")], 5432)], egress=[]),
        _policy(
            site,
            "object-store",
            app("object-store")["podSelector"],
            ingress=[_from([RAY, CLIENTS, app("mlflow")], 8333)],
            egress=[],
        ),
    ]


def _policy(site: Site, name: str, pods: dict[str, Any], **rules: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [kind for kind in ("ingress", "egress") if kind in rules]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(site, name),
        "spec": {"podSelector": pods, "policyTypes": [kind.capitalize() for kind in kinds], **rules},
    }


def _from(peers: list[dict[str, Any]], *ports: int) -> dict[str, Any]:
    return {"from": peers, **_ports(ports)}


def _to(peers: list[dict[str, Any]], *ports: int) -> dict[str, Any]:
    return {"to": peers, **_ports(ports)}


def _ports(ports: tuple[int, ...]) -> dict[str, Any]:
    return {"ports": [{"port": port, "protocol": "TCP"} for port in ports]} if ports else {}


def _dns() -> dict[str, Any]:
    return {"ports": [{"port": 53, "protocol": kind} for kind in ("UDP", "TCP")]}


def port_of(url: str) -> int:
    """Where a URL's server listens."""
    parts = urlsplit(url)
    return parts.port or {"https": 443}.get(parts.scheme, 80)
