"""Rules for what is neither a pod nor Ray's: who may do what, who may talk to whom, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.manifests import check_cron

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .documents import Document, Problem

CRON_JOB = {
    "concurrencyPolicy": "Forbid",
    "startingDeadlineSeconds": None,
    "successfulJobsHistoryLimit": None,
    "failedJobsHistoryLimit": None,
    "timeZone": None,
}
"""what must be said, and where only one thing may be"""


def cluster_problems(document: Document) -> Iterator[Problem]:
    """What is wrong with a role, a network policy or a CronJob."""
    spec = document.body.get("spec") or {}
    if document.kind in ("Role", "ClusterRole"):
        for index, rule in enumerate(document.body.get("rules", [])):
            if any("*" in words for words in rule.values()):
                yield document.problem(f"rules[{index}]", "must name what is allowed, not *")
    if document.kind == "NetworkPolicy":
        for index, rule in enumerate(spec.get("ingress", [])):
            if not rule.get("from"):
                yield document.problem(f"spec.ingress[{index}].from", "must say who may come in")
    if document.kind == "CronJob":
        for name, value in CRON_JOB.items():
            if name not in spec or (value and spec[name] != value):
                yield document.problem(f"spec.{name}", f"must be {value or 'given'}")
        try:
            check_cron(str(spec.get("schedule", "")))
        except ValueError as err:
            yield document.problem("spec.schedule", str(err))
