"""The lint of infra/: it finds nothing wrong with what is there, and each of these mistakes, by file, path and rule."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from lint.build import build, composed
from lint.documents import KUSTOMIZATION
from lint.judge import problems
from lint.schemas import Schemas, strict

INFRA = Path(__file__).parents[2] / "infra"
KUBERAY = Path(os.environ.get("KUBERAY_SCHEMAS", INFRA.parents[1] / "shared" / "kuberay"))
CLUSTER = "kubernetes/overlays/gpu/ray-cluster.yaml"
TRAIN = "kubernetes/jobs/cpu/train.yaml"
RETRAIN = "kubernetes/overlays/cpu/retrain.yaml"
MLFLOW = "kubernetes/base/mlflow.yaml"
POLICIES = "kubernetes/base/network-policies.yaml"


@pytest.fixture(scope="module")
def schemas():
    return Schemas(KUBERAY)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns("lint", "__pycache__")))


def edited(file, kind, edit):
    """Change the first manifest of a kind in a file."""
    bodies = list(yaml.safe_load_all(file.read_text()))
    edit(next(body for body in bodies if body["kind"] == kind))
    file.write_text(yaml.safe_dump_all(bodies))


def pod_of(body):
    """The pod of a Deployment, of a RayCluster's head or of a RayJob's."""
    spec = body["spec"]
    spec = spec.get("rayClusterSpec", spec)
    return spec.get("headGroupSpec", spec)["template"]["spec"]


def container_of(body):
    return pod_of(body)["containers"][0]


def test_nothing_is_wrong_with_what_is_there(schemas):
    assert [str(problem) for problem in problems(INFRA, schemas)] == []


MISTAKES = {
    "no tag": (MLFLOW, "Deployment", lambda b: container_of(b).update(image="ray-ddpm"), r"image: must have a tag"),
    "latest": (CLUSTER, "RayCluster", lambda b: container_of(b).update(image="r/ray-ddpm:latest"), r"image: must have"),
    "root": (MLFLOW, "Deployment", lambda b: pod_of(b)["securityContext"].update(runAsUser=0), r"must not be root"),
    "escalation": (
        TRAIN, "RayJob", lambda b: container_of(b)["securityContext"].pop("allowPrivilegeEscalation"),
        r"allowPrivilegeEscalation: must be false",
    ),
    "no requests": (TRAIN, "RayJob", lambda b: container_of(b).pop("resources"), r"resources\.requests\.cpu: must be"),
    "password in clear": (
        MLFLOW, "Deployment", lambda b: container_of(b)["env"].append({"name": "PGPASSWORD", "value": "hunter2"}),
        r"env\[\d+\]\.value: PGPASSWORD must come from a Secret",
    ),
    "password in a URI": (
        "kubernetes/base/settings.yaml", "ConfigMap",
        lambda b: b["data"].update(MLFLOW_TRACKING_URI="http://admin:hunter2@mlflow:5000"),
        r"data\.MLFLOW_TRACKING_URI: a secret must not stand in clear",
    ),
    "host's disk": (
        MLFLOW, "Deployment", lambda b: pod_of(b)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        r"hostPath must not be used",
    ),
    "misspelt": (MLFLOW, "Deployment", lambda b: b["spec"].update(replica=2), r"'replica' was unexpected"),
    "overlaps": (RETRAIN, "CronJob", lambda b: b["spec"].update(concurrencyPolicy="Allow"), r"must be Forbid"),
    "no deadline": (RETRAIN, "CronJob", lambda b: b["spec"].pop("startingDeadlineSeconds"), r"must be given"),
    "no such time": (RETRAIN, "CronJob", lambda b: b["spec"].update(schedule="0 25 * * *"), r"as hour, got '25'"),
    "no such day": (RETRAIN, "CronJob", lambda b: b["spec"].update(schedule="0 0 31 4 *"), r"a day that exists"),
    "every right": (RETRAIN, "Role", lambda b: b["rules"][0].update(verbs=["*"]), r"must name what is allowed, not \*"),
    "from anywhere": (
        POLICIES, "NetworkPolicy", lambda b: b["spec"].update(ingress=[{"ports": [{"port": 6379}]}]),
        r"spec\.ingress\[0\]\.from: must say who may come in",
    ),
    "ttl alone": (
        TRAIN, "RayJob", lambda b: b["spec"].pop("shutdownAfterJobFinishes"), r"needs shutdownAfterJobFinishes"
    ),
    "for ever without a node": (
        TRAIN, "RayJob", lambda b: b["spec"].pop("preRunningDeadlineSeconds"),
        r"spec\.preRunningDeadlineSeconds: must be given",
    ),
    "retries of somebody's cluster": (
        TRAIN, "RayJob", lambda b: b["spec"].update(clusterSelector={"ray.io/cluster": "ddpm"}),
        r"spec\.backoffLimit: must not be given with clusterSelector",
    ),
    "long name": (TRAIN, "RayJob", lambda b: b["metadata"].update(name="x" * 48), r"must be at most 47 characters"),
    "restarts under autoscaler v2": (
        CLUSTER, "RayCluster", lambda b: pod_of(b).update(restartPolicy="Always"), r"restartPolicy: must be Never"
    ),
    "sidecar": (
        TRAIN, "RayJob", lambda b: b["spec"].update(submissionMode="SidecarMode", submitterPodTemplate={}),
        r"SidecarMode must not be given with submitterPodTemplate",
    ),
    "open to all": (CLUSTER, "RayCluster", lambda b: b["spec"].pop("authOptions"), r"must be of mode token"),
    "another Ray": (CLUSTER, "RayCluster", lambda b: b["spec"].update(rayVersion="2.9.0"), r"as in constraints\.txt"),
    "no time to drain": (
        CLUSTER, "RayCluster",
        lambda b: b["spec"]["workerGroupSpecs"][1]["template"]["spec"].pop("terminationGracePeriodSeconds"),
        r"workerGroupSpecs\[1\].*terminationGracePeriodSeconds: must be more than 30",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_manifest_is_found_by_file_path_and_rule(mistake, copy, schemas):
    file, kind, edit, said = MISTAKES[mistake]
    edited(copy / file, kind, edit)
    found = [str(problem) for problem in problems(copy, schemas)]

    assert any(re.match(rf"{re.escape(file)}: {kind}/[\w-]+ ?.*{said}", line) for line in found), found


def test_a_mistake_in_a_job_that_a_schedule_carries_is_found(copy, schemas):
    def edit(body):
        text = body["data"]["ray-job.yaml"]
        body["data"]["ray-job.yaml"] = text.replace("name: retrain-digits", f"name: {'x' * 39}").replace("-cpu", "")

    edited(copy / RETRAIN, "ConfigMap", edit)
    edited(copy / RETRAIN, "ConfigMap", lambda body: body["data"].update(x="y"))
    found = [str(problem) for problem in problems(copy, schemas)]

    assert [line for line in found if "(retrain-digits: ray-job.yaml)" in line and "must be at most 38" in line]


@pytest.mark.skipif(not KUBERAY.is_dir(), reason="the schemas of KubeRay's kinds are not here")
def test_a_field_that_a_ray_cluster_does_not_have_is_found(copy, schemas):
    edited(copy / CLUSTER, "RayCluster", lambda body: body["spec"]["autoscalerOptions"].update(idleTimeout=3))
    found = [str(problem) for problem in problems(copy, schemas)]

    assert [line for line in found if line.startswith(f"{CLUSTER}: RayCluster/ddpm spec.autoscalerOptions: ")]


def test_a_schema_that_is_not_there_is_said_to_be_skipped_and_all_else_is_judged(copy, tmp_path):
    schemas = Schemas(tmp_path / "nowhere")
    edited(copy / CLUSTER, "RayCluster", lambda body: body["spec"].pop("authOptions"))

    assert len(schemas.skipped) == 1
    assert [line for line in map(str, problems(copy, schemas)) if "must be of mode token" in line]


OTHER_MISTAKES = {
    "latest base": ("Dockerfile", "python:${PYTHON}-slim-bookworm", "python:latest", r"FROM must have a tag"),
    "root": ("Dockerfile", "USER 1000:1000", "USER root", r"USER: the last stage must run as a user that is not root"),
    "secret in a layer": ("Dockerfile", "PYTHONUNBUFFERED=1", "API_TOKEN=x", r"ENV must hold no secret"),
    "loose versions": ("Dockerfile", "-c infra/constraints.txt \\\n", "\\\n", r"pip install must heed"),
    "no healthcheck": ("Dockerfile", "HEALTHCHECK", "LABEL", r"HEALTHCHECK: the last stage must have one"),
    "default password": ("compose.yaml", "${PGPASSWORD:?set PGPASSWORD (infra/README.md)}", "x", r"has to be given"),
    "for all the network": ("compose.yaml", "127.0.0.1:5000:5000", "5000:5000", r"published on 127\.0\.0\.1 alone"),
}


@pytest.mark.parametrize("mistake", OTHER_MISTAKES)
def test_a_mistake_in_image_or_compose_file_is_found(mistake, copy, schemas):
    file, right, wrong, said = OTHER_MISTAKES[mistake]
    text = (copy / file).read_text()
    (copy / file).write_text(text.replace(right, wrong))
    found = [str(problem) for problem in problems(copy, schemas)]

    assert right in text
    assert any(re.match(rf"{file}: .*{said}", line) for line in found), found


def test_a_manifest_that_no_kustomization_names_is_found_and_one_that_is_not_there(copy, schemas):
    (copy / MLFLOW).rename(copy / "kubernetes/base/other.yaml")
    found = [str(problem) for problem in problems(copy, schemas)]

    assert any("base/kustomization.yaml: resources: must name other.yaml" in line for line in found)
    assert any("mlflow.yaml" in line for line in found)


@pytest.mark.skipif(not (shutil.which("kubectl") or shutil.which("kustomize")), reason="kustomize is not here")
def test_what_we_put_together_ourselves_is_what_kustomize_builds():
    def key(body):
        return body["kind"], body["metadata"]["name"]

    for file in (INFRA / "kubernetes").rglob(KUSTOMIZATION):
        assert sorted(build(file.parent), key=key) == sorted(composed(file.parent), key=key)


def test_a_strict_schema_refuses_what_it_does_not_name_and_takes_either_of_int_and_string():
    size = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    schema = {"type": "object", "properties": {"size": size, "labels": {"type": "object"}}}

    assert json.loads(json.dumps(strict(schema))) == {
        "type": "object",
        "properties": {"size": {"type": ["integer", "string"]}, "labels": {"type": "object"}},
        "additionalProperties": False,
    }
