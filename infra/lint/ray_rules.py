"""What KubeRay's controller refuses though its schemas let it pass, and what we ask of a Ray cluster besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.manifests.ray import MAX_JOB_NAME
from workflows.manifests.schedule import MAX_NAME

from .documents import found_in
from .pods import requests, unprivileged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .documents import Document, Problem

MAX_CRON_JOB_NAME = 36
DRAIN_S = 30


def ray_problems(document: Document, ray_version: str) -> Iterator[Problem]:
    """What is wrong with one of KubeRay's kinds."""
    spec = document.body.get("spec", {})
    if document.kind == "RayJob":
        limit = MAX_NAME if "(" in document.file else MAX_JOB_NAME  # inside a ConfigMap: the time comes behind it
        yield from _name(document, limit)
        yield from (document.problem(f"spec{at}", rule) for at, rule in _job(spec))
    if document.kind == "RayCronJob":
        yield from _name(document, MAX_CRON_JOB_NAME)
        yield from (document.problem(f"spec.jobTemplate{at}", rule) for at, rule in _job(spec.get("jobTemplate", {})))
    for path, value in found_in(document.body):
        if isinstance(value, dict) and "headGroupSpec" in value:
            for at, rule in _cluster(value, ray_version):
                yield document.problem(f"{path}{at}", rule)


def _name(document: Document, limit: int) -> Iterator[Problem]:
    if len(document.name) > limit:
        yield document.problem("metadata.name", f"must be at most {limit} characters, got {len(document.name)}")


def _job(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    mode, selects = spec.get("submissionMode", "K8sJobMode"), "clusterSelector" in spec
    if selects == ("rayClusterSpec" in spec):
        yield "", "must have one of rayClusterSpec and clusterSelector"
    for name in ("suspend", "ttlSecondsAfterFinished"):
        if spec.get(name) and not spec.get("shutdownAfterJobFinishes"):
            yield f".{name}", "needs shutdownAfterJobFinishes"
    if "preRunningDeadlineSeconds" not in spec:
        yield ".preRunningDeadlineSeconds", "must be given: without it, what cannot start is waited for without end"
    if spec.get("backoffLimit") and (selects or mode == "InteractiveMode"):
        yield ".backoffLimit", "must not be given with clusterSelector or InteractiveMode"
    if mode == "SidecarMode" and (selects or "submitterPodTemplate" in spec):
        yield ".submissionMode", "SidecarMode must not be given with submitterPodTemplate or clusterSelector"


def _cluster(spec: dict[str, Any], ray_version: str) -> Iterator[tuple[str, str]]:
    autoscaler = spec.get("autoscalerOptions", {})
    if spec.get("rayVersion") != ray_version:
        yield ".rayVersion", f"must be {ray_version}, as in constraints.txt, got {spec.get('rayVersion')}"
    if spec.get("authOptions", {}).get("mode") != "token" or not spec["authOptions"].get("secretName"):
        yield ".authOptions", "must be of mode token with a secretName: Ray runs what anybody sends it"
    if spec.get("enableInTreeAutoscaling"):
        for at, rule in requests(autoscaler.get("resources", {})):
            yield f".autoscalerOptions{at}", rule
        for at, rule in unprivileged(autoscaler.get("securityContext", {}), {}):
            yield f".autoscalerOptions{at}", rule
    groups = [("headGroupSpec", spec["headGroupSpec"])]
    groups += [(f"workerGroupSpecs[{index}]", group) for index, group in enumerate(spec.get("workerGroupSpecs", []))]
    for path, group in groups:
        for at, rule in _group(group, is_v2=autoscaler.get("version") == "v2", is_head=path == "headGroupSpec"):
            yield f".{path}{at}", rule


def _group(group: dict[str, Any], is_v2: bool, is_head: bool) -> Iterator[tuple[str, str]]:
    pod = group.get("template", {}).get("spec", {})
    if is_v2 and pod.get("restartPolicy", "Never") != "Never":
        yield ".template.spec.restartPolicy", "must be Never or unset with autoscaler v2"
    if is_head:
        return
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
        yield ".replicas", "must be between minReplicas and maxReplicas"
    if pod.get("terminationGracePeriodSeconds", DRAIN_S) <= DRAIN_S:
        yield ".template.spec.terminationGracePeriodSeconds", f"must be more than {DRAIN_S}: Ray drains for so long"
