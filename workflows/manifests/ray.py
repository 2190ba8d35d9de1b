"""Ray on Kubernetes: the cluster, and jobs with a cluster of their own."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..words import value_of
from .pods import container, container_security, pod, resources, scratch
from .site import CREDENTIALS, MARKET_LABEL, RAY_TOKEN, SETTINGS, STORAGE, metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .site import Site

API = "ray.io/v1"
MAX_JOB_NAME = 47
"""KubeRay's own limit"""
GRACE_S = 120
"""for a worker that is told to go: Ray drains for 30 s, then its training writes a checkpoint"""
IDLE_S = 300
ROOM_S = 1200
"""for a node to be bought, started and to have the image"""
START_S = ROOM_S + 600
"""for a job's cluster to have its pods: more than a node takes. An image that is not there never comes"""
LINGER_S = 60
"""a cluster whose job has ended: for who follows its log to read the end of it. The RayJob stays, without pods"""


def ray_cluster(site: Site, name: str = "ddpm") -> dict[str, Any]:
    """The cluster that stays, for `ddpm submit`."""
    return {"apiVersion": API, "kind": "RayCluster", "metadata": metadata(site, name), "spec": cluster_spec(site)}


def ray_job(site: Site, name: str, words: Sequence[str]) -> dict[str, Any]:
    """One of our commands on a cluster of its own, which goes when it ends.

    The operator itself asks for the outcome (HTTPMode): the other modes fail a job whose log stream is dropped. A head
    that dies takes its job with it: it is tried again, and goes on from its last checkpoint.
    """
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": metadata(site, name),
        "spec": {
            "entrypoint": entrypoint(words),
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": LINGER_S,
            "preRunningDeadlineSeconds": START_S,
            "backoffLimit": 3,
            "rayClusterSpec": cluster_spec(site),
        },
    }


def entrypoint(words: Sequence[str]) -> str:
    """The command line, for the head's shell; the storage is that of the settings unless the words name one."""
    line = shlex.join(["ddpm", *words])
    return line if value_of(words, "--storage") else f"{line} {STORAGE}"


def grows_to(site: Site) -> str:
    """What the autoscaler may get, for our jobs to know that they have to wait for it."""
    groups = [{"nodes": site.max_workers, "CPU": site.worker[0]}]
    groups += [{"nodes": site.max_workers, "CPU": site.gpu_worker[0], "GPU": 1}] * (2 if site.gpu else 0)
    return json.dumps(groups)


def cluster_spec(site: Site) -> dict[str, Any]:
    """A head without work of its own, CPU workers, and GPU workers from zero where there are any."""
    groups = [worker_group(site, "cpu", site.worker, smallest=1)]
    if site.gpu:  # the group of higher priority is scaled up first
        groups += [gpu_group(site, "gpu-spot", "spot", priority=10), gpu_group(site, "gpu", "on-demand", priority=0)]
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": RAY_TOKEN},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_S,
            "upscalingMode": "Default",
            "resources": resources(0.5, "1Gi"),
            "securityContext": container_security(),
        },
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},  # noqa: S104 - see the network policies
            "template": {"spec": ray_pod(site, "ray-head", resources(*site.head), HEAD_PORTS)},
        },
        "workerGroupSpecs": groups,
    }


HEAD_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def worker_group(site: Site, name: str, size: tuple[int, str], smallest: int = 0, **more: Any) -> dict[str, Any]:
    """Workers of one kind, as many as there is work for."""
    amounts, pod_settings = resources(*size, **more.pop("extra", {})), more.pop("pod", {})
    spec = ray_pod(site, "ray-worker", amounts, {"metrics": 8080}, terminationGracePeriodSeconds=GRACE_S)
    return {
        "groupName": name,
        "replicas": smallest,
        "minReplicas": smallest,
        "maxReplicas": site.max_workers,
        "rayStartParams": {},
        **more,
        "template": {"spec": {**spec, **pod_settings}},
    }


def gpu_group(site: Site, name: str, market: str, priority: int) -> dict[str, Any]:
    """Workers with a GPU each, on nodes that are ours for as long as nobody pays more, or until we give them back."""
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if market == "spot":
        tolerations.append({"key": MARKET_LABEL, "operator": "Equal", "value": market, "effect": "NoSchedule"})
    return worker_group(
        site,
        name,
        site.gpu_worker,
        priority=priority,
        labels={"ray.io/market-type": market},
        extra={"nvidia.com/gpu": 1},
        pod={"nodeSelector": {MARKET_LABEL: market}, "tolerations": tolerations},
    )


def ray_pod(site: Site, name: str, amounts: dict[str, Any], ports: dict[str, int], **more: Any) -> dict[str, Any]:
    """A pod of a Ray cluster. The head's autoscaler gets its account from the operator."""
    ray = container(
        name,
        site.image_name,
        amounts,
        {"tmp": "/tmp", "home": "/home/ddpm"},  # noqa: S108 - volumes of the pod's own
        ports=[{"name": port, "containerPort": number} for port, number in ports.items()],
        env=[
            {"name": "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "value": str(ROOM_S)},
            {"name": "DDPM_GROWS_TO", "value": grows_to(site)},
        ],
        envFrom=[{"configMapRef": {"name": SETTINGS}}, {"secretRef": {"name": CREDENTIALS}}],
    )
    spec = pod([ray], [scratch("tmp", "20Gi"), scratch("home", "20Gi")], restartPolicy="Never", **more)
    if name == "ray-head":
        del spec["automountServiceAccountToken"]  # its autoscaler speaks with Kubernetes
    return spec
