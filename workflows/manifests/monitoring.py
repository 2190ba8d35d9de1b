"""What Prometheus is to look at: Ray's own metrics, and those of our trainings (workflows/training/gauges.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .site import metadata

if TYPE_CHECKING:
    from .site import Site

SCRAPE_S = 15
RAY_LABELS = {f"ray.io/{name}": f"ray_io_{name.replace('-', '_')}" for name in ("cluster", "group", "node-type")}
TRAIN = "ray_ddpm_train"
"""Ray puts its own name before ours"""
AGE = f"time() - {TRAIN}_checkpoint_timestamp_seconds"


def pod_monitor(site: Site) -> dict[str, Any]:
    """For Prometheus's own operator: every Ray pod of the namespace."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(site, "ray"),
        "spec": {
            "selector": {"matchLabels": {"ray.io/is-ray-node": "yes"}},
            "podMetricsEndpoints": [{"port": "metrics", "interval": f"{SCRAPE_S}s"}],
            "podTargetLabels": list(RAY_LABELS),
        },
    }


def scrape_config(site: Site) -> dict[str, Any]:
    """For a Prometheus without that operator: in the cluster by the pods' labels, on one machine by Ray's own file."""
    pods = "__meta_kubernetes_pod_label"
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "ray-on-kubernetes",
                "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [site.namespace]}}],
                "relabel_configs": [
                    {"source_labels": [f"{pods}_ray_io_is_ray_node"], "regex": "yes", "action": "keep"},
                    {
                        "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                        "regex": "metrics",
                        "action": "keep",
                    },
                    *({"source_labels": [f"{pods}_{label}"], "target_label": label} for label in RAY_LABELS.values()),
                ],
            },
            {
                "job_name": "ray-on-one-machine",
                "file_sd_configs": [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}],  # noqa: S108 - Ray's
            },
        ],
    }


def rules() -> dict[str, Any]:
    """What is computed from them, and what somebody should hear of."""
    return {
        "groups": [
            {
                "name": "ddpm",
                "rules": [
                    {"record": "ddpm:checkpoint_age_seconds", "expr": AGE},
                    _alert("NoCheckpoint", f"{AGE} > 3600", "5m", "no checkpoint for an hour"),
                    _alert("DataWait", f"{TRAIN}_data_wait_ratio > 0.3", "15m", "a third of the time waits for data"),
                    _alert("Restarts", f"delta({TRAIN}_failures[1h]) >= 3", "0m", "three attempts failed in an hour"),
                ],
            }
        ]
    }


def _alert(name: str, expr: str, lasting: str, summary: str) -> dict[str, Any]:
    says = {"summary": "training {{ $labels.training }}: " + summary}
    labels = {"severity": "warning"}
    return {"alert": f"Ddpm{name}", "expr": expr, "for": lasting, "labels": labels, "annotations": says}
