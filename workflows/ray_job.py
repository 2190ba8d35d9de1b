"""`python -m workflows.ray_job TEMPLATE`: what a CronJob's pod does. Creates a RayJob, once, and waits for its end.

The RayJob has the name of the pod's own Job, TICK_NAME, which is schedule and time: a pod that is made anew for the
same tick finds the RayJob that is there. It belongs to that Job, whose id is TICK_UID: Kubernetes deletes it when the
CronJob's history drops the Job. That this waits is what lets `concurrencyPolicy: Forbid` mean anything, and gives that
history its outcome.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

POLL_S = 10.0
TIMEOUT_S = 30
SUCCEEDED, FAILED, TRY_AGAIN = 0, 1, 75
"""exit codes: the last lets Kubernetes make a new pod"""
CONFLICT, NOT_FOUND = 409, 404
ENDED = ("Complete", "Failed", "ValidationFailed")
HINTS = {
    "PreRunningDeadlineExceeded": (
        "its pods did not start, for want of a node with room or of their image (kubectl get events)"
    )
}
"""to what KubeRay says in a word"""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Api:
    """Kubernetes, as far as RayJobs of one namespace go."""

    url: str
    account: Path

    def create(self, job: dict[str, Any]) -> bool:
        """Create a RayJob; whether it was not there. Raises OSError if Kubernetes does not do it."""
        try:
            self._ask(self._path(job), job)
        except urllib.error.HTTPError as err:
            if err.code == CONFLICT:
                return False
            raise
        return True

    def status(self, job: dict[str, Any]) -> dict[str, Any]:
        """How a RayJob does. Raises OSError if Kubernetes does not say."""
        status: dict[str, Any] = self._ask(f"{self._path(job)}/{job['metadata']['name']}").get("status", {})
        return status

    def _path(self, job: dict[str, Any]) -> str:
        return f"/apis/{job['apiVersion']}/namespaces/{job['metadata']['namespace']}/rayjobs"

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        token = (self.account / "token").read_text().strip()  # read anew: Kubernetes replaces it every hour
        request = urllib.request.Request(  # noqa: S310 - https, but in tests
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        authority = self.account / "ca.crt"
        context = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310 - as above
            found: dict[str, Any] = json.load(answer)
            return found


def run(api: Api, job: dict[str, Any], poll_s: float = POLL_S) -> int:
    """Create the RayJob if it is not there, and wait for its end; our exit code."""
    name = job["metadata"]["name"]
    print(f"RayJob {name} {'created' if api.create(job) else 'is there'}", flush=True)
    while (status := api.status(job)).get("jobDeploymentStatus") not in ENDED:
        time.sleep(poll_s)
    print(f"RayJob {name}: {told(status)}", flush=True)
    return SUCCEEDED if status.get("jobStatus") == "SUCCEEDED" else FAILED


def told(status: dict[str, Any]) -> str:
    """What has become of a RayJob that has ended, and why; of the log that comes with it, the last lines."""
    reason = status.get("reason", "")
    outcome = status.get("jobStatus") or status["jobDeploymentStatus"]
    return ": ".join(filter(None, [outcome, reason, HINTS.get(reason), status.get("message")]))


def of_tick(template: dict[str, Any], name: str, uid: str) -> dict[str, Any]:
    """The RayJob of a tick, owned by the tick's Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return {**template, "metadata": {**template["metadata"], "name": name, "ownerReferences": [owner]}}


def main(argv: list[str], environment: dict[str, str], account: Path = ACCOUNT, poll_s: float = POLL_S) -> int:
    """The command; its exit code."""
    job = of_tick(yaml.safe_load(Path(argv[0]).read_text()), environment["TICK_NAME"], environment["TICK_UID"])
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
    scheme = "https" if (account / "ca.crt").exists() else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        return run(Api(url, account), job, poll_s)
    except urllib.error.HTTPError as err:
        print(f"Kubernetes refuses: {err.code} {err.reason}: {_message(err)}", file=sys.stderr)
        return FAILED if err.code == NOT_FOUND else TRY_AGAIN
    except OSError as err:
        print(f"Kubernetes does not answer: {err}", file=sys.stderr)
        return TRY_AGAIN


def _message(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(err.read())["message"])
    except (ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
