"""The files under infra/ that are written from the manifests, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .compose import compose
from .monitoring import pod_monitor, rules, scrape_config
from .network import policies
from .object_store import object_store
from .ray import ray_cluster, ray_job
from .schedule import scheduled
from .site import SETTINGS, metadata
from .text import to_yaml
from .tracking_server import BASIC_AUTH, database, tracking_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .site import Site

HEADER = "# Written by `make infra` from workflows/manifests: a change made here is lost.\n"
RETRAIN = ("retrain", "digits")
NIGHTLY = "0 3 * * *"


def files(site: Site) -> dict[str, str]:
    """Names under infra/, and what is in them."""
    overlays = {name: replace(site, gpu=name == "gpu") for name in ("cpu", "gpu")}
    written = {
        **_folder("kubernetes/base", _base(site)),
        **_folder("kubernetes/object-store", {"object-store.yaml": object_store(site)}),
        **_folder("kubernetes/monitoring", {"pod-monitor.yaml": [pod_monitor(site)]}),
    }
    for name, each in overlays.items():
        written |= _folder(f"kubernetes/overlays/{name}", _overlay(each), above=["../../base"])
        written |= _folder(f"kubernetes/jobs/{name}", _jobs(each))
    written["compose.yaml"] = to_yaml([compose(site)])
    written["basic_auth.ini"] = BASIC_AUTH
    written["prometheus/prometheus.yaml"] = to_yaml([scrape_config(site)])
    written["prometheus/rules.yaml"] = to_yaml([rules()])
    return {name: HEADER + text for name, text in written.items()}


def _base(site: Site) -> dict[str, list[dict[str, Any]]]:
    settings = {
        "DDPM_STORAGE": site.storage,
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWS_ENDPOINT_URL": site.object_store,
        "AWS_DEFAULT_REGION": site.region,
    }
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {
        "namespace.yaml": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace, "labels": labels}}
        ],
        "settings.yaml": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(site, SETTINGS), "data": settings}
        ],
        "network-policies.yaml": policies(site),
        "postgres.yaml": database(site),
        "mlflow.yaml": tracking_server(site),
    }


def _overlay(site: Site) -> dict[str, list[dict[str, Any]]]:
    return {
        "ray-cluster.yaml": [ray_cluster(site)],
        "retrain.yaml": scheduled(site, "retrain-digits", NIGHTLY, RETRAIN),
    }


def _jobs(site: Site) -> dict[str, list[dict[str, Any]]]:
    """The stages one by one, to be created by hand."""
    gpus = ("--num-workers", "2", "--use-gpu") if site.gpu else ()
    stages = {"shard": ("shard", "digits"), "train": ("train", "digits", *gpus), "sample": ("sample", "digits")}
    return {f"{name}.yaml": [ray_job(site, f"digits-{name}", words)] for name, words in stages.items()}


def _folder(folder: str, contents: dict[str, list[dict[str, Any]]], above: Sequence[str] = ()) -> dict[str, str]:
    """The files of a folder, and the kustomization that names them."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [*above, *contents],
    }
    written = {f"{folder}/{name}": to_yaml(documents) for name, documents in contents.items()}
    return {f"{folder}/kustomization.yaml": to_yaml([kustomization]), **written}
