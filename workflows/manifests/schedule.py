"""A command on a schedule: a CronJob that creates a RayJob and ends as that does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..cron import Cron, zone_of
from .pods import container, label_env, pod, resources, scratch
from .ray import MAX_JOB_NAME, ray_job
from .site import DNS_LABEL, metadata
from .text import to_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .site import Site

TICK = "-12345678"
"""what Kubernetes puts behind the name of a CronJob: the scheduled time in minutes since 1970"""
MAX_NAME = MAX_JOB_NAME - len(TICK)
TEMPLATE = "ray-job.yaml"
FAILED = 1
"""the exit code of `workflows.ray_job` where the RayJob has failed: no reason to try again"""

MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
SUNDAY_COMES_LAST = re.compile(r"(?<!/)\b7\b|-(0|sun)\b", re.IGNORECASE)


def scheduled(
    site: Site, name: str, cron: str, words: Sequence[str], timezone: str = "UTC", deadline_s: int = 3600
) -> list[dict[str, Any]]:
    """All that Kubernetes needs to run a command on a schedule.

    A tick that could not be kept for `deadline_s` is missed; one that comes while the last one's work goes on is
    skipped. The RayJob is named after schedule and tick, so a tick never becomes two. Raises ValueError for a name or a
    time that Kubernetes would refuse.
    """
    check_name(name)
    check_cron(cron)
    zone_of(timezone)  # raises ValueError if there is none
    if deadline_s < 10:
        raise ValueError(f"deadline_s must be at least 10, which is how often Kubernetes looks, got {deadline_s}")
    template = ray_job(site, name, words)
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(site, name),
            "data": {TEMPLATE: to_yaml([template])},
        },
        *_account(site, name),
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": metadata(site, name),
            "spec": {
                "schedule": cron,
                "timeZone": timezone,
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": deadline_s,
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {"spec": _job(site, name)},
            },
        },
    ]


def _account(site: Site, name: str) -> list[dict[str, Any]]:
    """Who may create RayJobs and see how they do, and nothing else."""
    api = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(site, name),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "Role",
            "metadata": metadata(site, name),
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": metadata(site, name),
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": site.namespace}],
        },
    ]


def _job(site: Site, name: str) -> dict[str, Any]:
    """Of one tick. Its pod may be lost and made anew: it finds the RayJob that it created."""
    tick = {"TICK_NAME": "job-name", "TICK_UID": "controller-uid"}
    create = container(
        "create",
        site.image_name,
        resources(0.1, "256Mi"),
        {"tmp": "/tmp"},  # noqa: S108 - a volume of the pod's own
        command=["python", "-m", "workflows.ray_job", f"/template/{TEMPLATE}"],
        env=[label_env(variable, f"batch.kubernetes.io/{label}") for variable, label in tick.items()],
        volumeMounts=[{"name": "template", "mountPath": "/template", "readOnly": True}],
    )
    spec = pod([create], [scratch("tmp", "100Mi"), {"name": "template", "configMap": {"name": name}}])
    return {
        "backoffLimit": 6,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [FAILED]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ],
        },
        "template": {
            "spec": {
                **spec,
                "restartPolicy": "Never",
                "serviceAccountName": name,
                "automountServiceAccountToken": True,
            }
        },
    }


def check_name(name: str) -> None:
    """Raises ValueError if Kubernetes or KubeRay would refuse it."""
    if not DNS_LABEL.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"name must be at most {MAX_NAME} lower-case letters, digits and '-', the first a letter (a RayJob's, "
            f"which has the time behind it, is at most {MAX_JOB_NAME}), got {name!r}"
        )


def check_cron(line: str) -> None:
    """Raises ValueError if a CronJob could not be scheduled by a line, or never would be.

    A line of Kubernetes' is one of ours, but for a week that ends with Saturday, "?" for "*", and names for some lines.
    """
    if line in MACROS:
        return
    Cron(line.replace("?", "*"), "UTC")
    weekday = line.split()[-1]
    if SUNDAY_COMES_LAST.search(weekday):
        raise ValueError(f"cron must have 0 to 6 as weekday: Kubernetes' week begins with Sunday, 0, got {weekday!r}")
