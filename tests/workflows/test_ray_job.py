"""What a CronJob's pod does: one RayJob for a tick, however often the pod is made anew, and its outcome."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workflows.manifests import Site, scheduled
from workflows.ray_job import FAILED, SUCCEEDED, TRY_AGAIN, main

TOKEN = "token-of-the-account"
JOBS = "/apis/ray.io/v1/namespaces/ddpm/rayjobs"


class Kubernetes(ThreadingHTTPServer):
    """As much of its API as is asked: it keeps RayJobs, which go through `states`, one each time they are looked at."""

    def __init__(self, states):
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs, self.states, self.away = {}, list(states), 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_refused() or self.path != JOBS:
            return self.answer(403, {"message": "forbidden"})
        if job["metadata"]["name"] in self.server.jobs:
            return self.answer(409, {"message": "already exists"})
        self.server.jobs[job["metadata"]["name"]] = job
        return self.answer(201, job)

    def do_GET(self):
        folder, _, name = self.path.rpartition("/")
        if self.is_refused() or folder != JOBS:
            return self.answer(403, {"message": "forbidden"})
        if name not in self.server.jobs:
            return self.answer(404, {"message": "not found"})
        states = self.server.states
        return self.answer(200, {"status": states.pop(0) if len(states) > 1 else states[0]})

    def is_refused(self):
        return self.headers["Authorization"] != f"Bearer {TOKEN}"

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


@pytest.fixture
def pod(tmp_path):
    """A function that starts a pod of a tick against an API, with what Kubernetes mounts in it; its exit code."""
    config, *_ = scheduled(Site(), "nightly", "0 3 * * *", ["shard", "digits"])
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "template").write_text(config["data"]["ray-job.yaml"])

    def start(port, name="nightly-29000000"):
        where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        tick = {"TICK_NAME": name, "TICK_UID": f"uid-of-{name}"}
        return main([str(tmp_path / "template")], {**where, **tick}, account=tmp_path, poll_s=0.01)

    return start


@pytest.fixture
def kubernetes():
    """A function that starts an API."""
    started = []

    def start(*states):
        server = Kubernetes(states)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_tick_becomes_a_ray_job_of_its_name_and_waits_for_its_end(kubernetes, pod):
    server = kubernetes({}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RETRYING, RUNNING, DONE)

    assert pod(server.server_port) == SUCCEEDED
    assert list(server.jobs) == ["nightly-29000000"]
    assert server.states == [DONE]
    assert server.jobs["nightly-29000000"]["spec"]["entrypoint"].startswith("ddpm shard digits")


def test_a_pod_that_is_made_anew_finds_the_ray_job_that_is_there_and_another_tick_is_another(kubernetes, pod, capsys):
    server = kubernetes(DONE)

    assert [pod(server.server_port), pod(server.server_port), pod(server.server_port, "nightly-29001440")] == [0, 0, 0]
    assert list(server.jobs) == ["nightly-29000000", "nightly-29001440"]
    assert "RayJob nightly-29000000 is there" in capsys.readouterr().out


def test_a_ray_job_is_its_ticks_own_and_goes_when_the_history_drops_that(kubernetes, pod):
    server = kubernetes(DONE)
    pod(server.server_port)

    assert server.jobs["nightly-29000000"]["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-29000000", "uid": "uid-of-nightly-29000000"}
    ]


@pytest.mark.parametrize(
    "state",
    [
        {"jobDeploymentStatus": "Complete", "jobStatus": "FAILED", "message": "why"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", "message": "why"},
        {"jobDeploymentStatus": "Failed", "message": "why"},
        {"jobDeploymentStatus": "ValidationFailed", "message": "why"},
    ],
)
def test_a_ray_job_that_fails_fails_the_tick_with_its_reason(state, kubernetes, pod, capsys):
    assert pod(kubernetes(state).server_port) == FAILED
    assert "why" in capsys.readouterr().out


def test_a_ray_job_that_never_started_fails_the_tick_and_says_what_to_look_at(kubernetes, pod, capsys):
    stuck = {"jobDeploymentStatus": "Initializing", "jobStatus": ""}
    given_up = {"jobDeploymentStatus": "Failed", "jobStatus": "", "reason": "PreRunningDeadlineExceeded"}
    outcome = pod(kubernetes(stuck, {**given_up, "message": "has passed the preRunningDeadlineSeconds"}).server_port)

    assert outcome == FAILED
    assert capsys.readouterr().out.splitlines()[-1] == (
        "RayJob nightly-29000000: Failed: PreRunningDeadlineExceeded: its pods did not start, for want of a node with "
        "room or of their image (kubectl get events): has passed the preRunningDeadlineSeconds"
    )


def test_an_api_that_refuses_or_is_away_is_asked_again_by_another_pod(kubernetes, pod, tmp_path, capsys):
    server = kubernetes(DONE)
    (tmp_path / "token").write_text("another")
    refused = pod(server.server_port)
    server.shutdown()
    server.server_close()
    away = pod(server.server_port)
    said = capsys.readouterr().err.splitlines()

    assert (refused, away) == (TRY_AGAIN, TRY_AGAIN)
    assert said[0] == "Kubernetes refuses: 403 Forbidden: forbidden"
    assert said[1].startswith("Kubernetes does not answer: ")
    assert server.jobs == {}


def test_the_pod_gets_its_tick_from_kubernetes_and_is_given_up_for_a_failed_job_alone():
    *_, cron_job = scheduled(Site(), "nightly", "0 3 * * *", ["shard", "digits"])
    job = cron_job["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]

    assert {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]} == {
        "TICK_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "TICK_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [FAILED]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},  # a drained node
    ]
    assert TRY_AGAIN != FAILED
