"""An S3-compatible store in the cluster, where no other is at hand: SeaweedFS on one disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .pods import container, pod, resources, scratch
from .tracking_server import service, with_disk

if TYPE_CHECKING:
    from .site import Site

IMAGE = "chrislusf/seaweedfs:4.47"
PORT = 8333
IDENTITIES = "object-store"
"""a Secret with s3.json, SeaweedFS's own list of who may do what"""
ARGUMENTS = ["server", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-dir=/data", "-volume.max=0", "-s3", f"-s3.port={PORT}"]
"""Its parts find each other by an address that does not change with the pod's."""


def object_store(site: Site) -> list[dict[str, Any]]:
    """The store behind a Service."""
    ready = {"tcpSocket": {"port": PORT}}
    server = container(
        "seaweedfs",
        IMAGE,
        resources(1, "2Gi"),
        {"data": "/data", "tmp": "/tmp"},  # noqa: S108 - a volume of the pod's own
        command=["weed"],
        args=[*ARGUMENTS, "-s3.config=/etc/seaweedfs/s3.json"],
        ports=[{"name": "s3", "containerPort": PORT}],
        readinessProbe={**ready, "periodSeconds": 10},
        livenessProbe={**ready, "periodSeconds": 30, "initialDelaySeconds": 60},
        volumeMounts=[{"name": "identities", "mountPath": "/etc/seaweedfs", "readOnly": True}],
    )
    spec = pod([server], [scratch("tmp", "1Gi"), {"name": "identities", "secret": {"secretName": IDENTITIES}}])
    return [service(site, "object-store", PORT), with_disk(site, "object-store", spec, "500Gi")]
