"""What differs from one cluster to the next; the names that all of them share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version

RAY_TOKEN = "ddpm-ray-token"  # noqa: S105 - the name of a Secret, as the next two
CREDENTIALS = "ddpm-credentials"
"""for the jobs: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD"""
SERVER_SECRETS = "mlflow"
"""for the MLflow server: its database's password, its administrator's, the key of its sessions, and its bucket's"""
SETTINGS = "ddpm-settings"
"""a ConfigMap for the jobs: DDPM_STORAGE, MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION"""
STORAGE = '--storage "$DDPM_STORAGE"'
CLIENT_LABEL = "ddpm/client"
"""on pods that may submit jobs and ask MLflow"""
MARKET_LABEL = "ddpm/market"
"""on nodes: spot or on-demand"""
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A namespace of a Kubernetes cluster, and how much of it may be used."""

    namespace: str = "ddpm"
    """where all of it is"""
    registry: str = "registry.example.com"
    """where the image was pushed to"""
    image: str = ""
    """default: REGISTRY/ray-ddpm:VERSION-cpu or -cuda"""
    gpu: bool = False
    """whether there are nodes with GPUs"""
    operator: str = "kuberay"
    """the namespace of KubeRay's operator"""
    monitoring: str = "monitoring"
    """the namespace of Prometheus"""
    storage: str = "s3://ddpm/runs"
    """of the jobs"""
    artifacts: str = "s3://ddpm/mlflow"
    """where the MLflow server puts what runs log"""
    object_store: str = "http://object-store:8333"
    """URL of the S3-compatible store"""
    region: str = "us-east-1"
    """that requests to the store are signed for; one that has no regions takes any"""
    max_workers: int = 8
    """pods of each group of workers"""
    head: tuple[int, str] = (2, "8Gi")
    """CPUs and memory of Ray's head"""
    worker: tuple[int, str] = (4, "16Gi")
    """the same of a worker without a GPU"""
    gpu_worker: tuple[int, str] = (8, "64Gi")
    """and of one with a GPU"""

    def __post_init__(self) -> None:
        if not DNS_LABEL.fullmatch(self.namespace):
            raise ValueError(f"namespace must be lower-case letters, digits and '-', got {self.namespace!r}")
        if not is_pinned(self.image_name):
            raise ValueError(f"image must have a tag other than latest, or a digest, got {self.image!r}")

    @property
    def image_name(self) -> str:
        """Of everything that runs our code."""
        return self.image or f"{self.registry}/ray-ddpm:{version('ray-ddpm')}-{'cuda' if self.gpu else 'cpu'}"


def is_pinned(image: str) -> bool:
    """Whether an image's name says which one: by a digest, or a tag that is not `latest`."""
    name, at, digest = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return bool(at and digest) or bool(colon and tag and tag != "latest")


def metadata(site: Site, name: str, **more: object) -> dict[str, object]:
    """A manifest's name and place."""
    return {"name": name, "namespace": site.namespace, "labels": {"app.kubernetes.io/part-of": "ray-ddpm"}, **more}
