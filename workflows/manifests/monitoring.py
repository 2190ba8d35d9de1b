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
AGE = "ddpm:checkpoint_age_seconds"
GAP = "10m"
"""from the end of an attempt's numbers to the beginning of the next one's, at most: nothing is known in between"""


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
    """What is computed from them, and what somebody should hear of.

    A training's attempts are processes of their own, and each has its own series: a rule is about the highest and the
    lowest of all that a training had in a while. Attempts that end before they are scraped count once one before them
    and one after them have been.
    """
    data_wait = _of_training("min", "data_wait_ratio", "1m")
    failures = f"{_of_training('max', 'failures', '1h')} - {_of_training('min', 'failures', '1h')}"
    return {
        "groups": [
            {
                "name": "ddpm",
                "rules": [
                    {"record": AGE, "expr": f"time() - {_of_training('max', 'checkpoint_timestamp_seconds', GAP)}"},
                    _alert("NoCheckpoint", f"{AGE} > 3600", "15m", "no checkpoint for an hour"),
                    _alert("DataWait", f"{data_wait} > 0.3", "15m", "a third of the time waits for data"),
                    _alert("Restarts", f"{failures} >= 3", "0m", "three attempts failed in an hour"),
                ],
            }
        ]
    }


def _of_training(which: str, metric: str, period: str) -> str:
    """The highest (`max`) or lowest (`min`) of a metric over all processes of a training, in the last while."""
    return f"{which} by (training) ({which}_over_time({TRAIN}_{metric}[{period}]))"


def _alert(name: str, expr: str, lasting: str, summary: str) -> dict[str, Any]:
    says = {"summary": "training {{ $labels.training }}: " + summary}
    labels = {"severity": "warning"}
    return {"alert": f"Ddpm{name}", "expr": expr, "for": lasting, "labels": labels, "annotations": says}
