"""Manifests: the files under infra/ are what the code writes, and `ddpm schedule emit` prints what Kubernetes takes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lint.documents import Document, read_documents, unpacked
from lint.judge import problems
from lint.pods import pod_problems, secret_problems
from lint.ray_rules import ray_problems
from lint.schemas import Schemas

from workflows.cli import judged, understood
from workflows.commands.presets import preset
from workflows.config_file import to_yaml
from workflows.manifests import Site, check_cron, files, scheduled
from workflows.manifests.ray import MAX_JOB_NAME, ROOM_S, entrypoint, ray_job
from workflows.manifests.schedule import MAX_NAME, TICK

INFRA = Path(__file__).parents[2] / "infra"
KUBERAY = Path(os.environ.get("KUBERAY_SCHEMAS", INFRA.parents[1] / "shared" / "kuberay"))


def test_the_files_under_infra_are_what_make_infra_writes():
    written = files(Site())
    there = {
        str(file.relative_to(INFRA))
        for folder in ("kubernetes", "prometheus")
        for file in (INFRA / folder).rglob("*")
        if file.is_file()
    }

    assert there | {"compose.yaml", "basic_auth.ini"} == written.keys()
    assert [name for name, text in written.items() if (INFRA / name).read_text() != text] == []


def test_the_files_of_another_cluster_name_its_own_places_alone_and_break_no_rule(tmp_path):
    words = ["--registry", "ghcr.io/me", "--namespace", "other", "--storage", "s3://mine/runs", "--max-workers", "3"]
    subprocess.run([sys.executable, "-m", "workflows.manifests", tmp_path, *words], check=True)
    texts = [file.read_text() for file in tmp_path.rglob("*.*")]

    assert [text for text in texts if re.search(r"registry\.example|namespace: ddpm|s3://ddpm/runs", text)] == []
    assert len(texts) == len(files(Site()))
    assert [str(problem) for problem in problems(tmp_path, Schemas(KUBERAY))] == []


def test_the_region_of_the_store_is_told_to_the_jobs_and_to_mlflow_in_the_cluster_and_under_compose(tmp_path):
    words = ["--object-store", "https://s3.eu-west-3.amazonaws.com", "--region", "eu-west-3"]
    subprocess.run([sys.executable, "-m", "workflows.manifests", tmp_path, *words], check=True)
    settings, mlflow, compose = (
        (tmp_path / name).read_text()
        for name in ("kubernetes/base/settings.yaml", "kubernetes/base/mlflow.yaml", "compose.yaml")
    )
    (server,) = (body for body in yaml.safe_load_all(mlflow) if body["kind"] == "Deployment")
    (container,) = server["spec"]["template"]["spec"]["containers"]

    assert yaml.safe_load(settings)["data"]["AWS_DEFAULT_REGION"] == "eu-west-3"
    assert {"name": "AWS_DEFAULT_REGION", "value": "eu-west-3"} in container["env"]
    assert yaml.safe_load(compose)["services"]["mlflow"]["environment"]["AWS_DEFAULT_REGION"] == "eu-west-3"


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("file", ["jobs/{}/shard", "jobs/{}/train", "jobs/{}/sample", "overlays/{}/retrain"])
def test_the_jobs_run_commands_that_there_are(hardware, file):
    name = f"kubernetes/{file.format(hardware)}.yaml"
    (job,) = (each.body for each in read_documents(INFRA / name, name) if each.kind == "RayJob")
    ddpm, *words = shlex.split(job["spec"]["entrypoint"])
    _, args = understood(words)

    assert ddpm == "ddpm"
    assert args.where.storage == "$DDPM_STORAGE"


def test_a_job_gives_its_cluster_back_when_it_ends():
    """KubeRay's time to live is that of the cluster: the RayJob, with the end of its log, stays."""
    job = ray_job(Site(), "digits-shard", ["shard", "digits"])

    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["ttlSecondsAfterFinished"] <= 60


def test_a_job_that_cannot_start_is_given_up_but_not_before_a_node_may_have_come():
    assert ray_job(Site(), "digits-shard", ["shard", "digits"])["spec"]["preRunningDeadlineSeconds"] > ROOM_S


def emit(capsys, *words):
    code, error = judged(["schedule", "emit", *words])
    return code, error, list(yaml.safe_load_all(capsys.readouterr().out))


def test_what_is_emitted_breaks_no_rule_and_is_one_cron_job_with_the_rights_for_one_kind(capsys):
    words = ["nightly", "--cron", "0 3 * * mon-fri", "--timezone", "Europe/Paris", "--gpu", "--image", "r/ddpm:1"]
    code, error, bodies = emit(capsys, *words, "--", "run", "digits", "--storage", "s3://bucket/runs")
    documents = [inner for body in bodies for inner in unpacked(Document("emitted", body))]
    by_kind = {document.kind: document.body for document in documents}
    schemas = Schemas(KUBERAY)

    assert (code, error) == (0, "")
    assert list(by_kind) == ["ConfigMap", "RayJob", "ServiceAccount", "Role", "RoleBinding", "CronJob"]
    for document in documents:
        assert [*schemas.problems(document), *pod_problems(document), *secret_problems(document)] == []
    (job,) = (document for document in documents if document.kind == "RayJob")
    assert list(ray_problems(job, ray_version=job.body["spec"]["rayClusterSpec"]["rayVersion"])) == []
    assert by_kind["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    assert by_kind["CronJob"]["spec"]["schedule"] == "0 3 * * mon-fri"
    assert by_kind["CronJob"]["spec"]["timeZone"] == "Europe/Paris"
    assert job.body["spec"]["entrypoint"] == "ddpm run digits --storage s3://bucket/runs"


HERE = [
    ("storage", ["shard", "--storage", "runs"], "runs"),
    ("storage", ["shard", "--storage=runs"], "runs"),
    ("storage", ["shard", "--storage", "file:///runs"], "file:///runs"),
    ("config", ["train", "--config", "mine.yaml"], "mine.yaml"),
    ("source", ["shard", "--source", "pictures"], "pictures"),
    ("source", ["shard", "--source", "digits", "s3://b/more", "pictures", "--dedupe"], "pictures"),
    ("source", ["retrain", "--source=pictures"], "pictures"),
    ("shard.source", ["run", "--shard.source", "./pictures"], "./pictures"),
    ("data", ["train", "--data", "/data/cats"], "/data/cats"),
    ("out", ["shard", "--out", "cats"], "cats"),
]


@pytest.mark.parametrize(("name", "words", "place"), HERE)
def test_a_place_that_only_this_machine_has_is_refused_in_a_line(name, words, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(to_yaml(preset("smoke")))
    code, error, bodies = emit(capsys, "n", "--cron", "0 3 * * *", "--", *words)

    assert (code, bodies) == (2, [])
    assert re.fullmatch(rf"{name} must be one that every pod reaches, such as s3://…, got {place}; .+", error)


@pytest.mark.parametrize("source", [["digits"], ["digits", "s3://bucket/more"], ["gs://bucket/cats.parquet"]])
def test_a_source_that_every_pod_reaches_is_taken(source, capsys):
    assert emit(capsys, "n", "--cron", "0 3 * * *", "--", "shard", "--source", *source)[:2] == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n", "--cron", "often", "--", "shard", "digits"], "cron must be minute, hour, .* got 'often'"),
        (["n", "--cron", "0 3 * *", "--", "shard", "digits"], "cron must be minute, hour, "),
        (["n", "--cron", "60 3 * * *", "--", "shard", "digits"], "cron must have 0 to 59, .* as minute, got '60'"),
        (["n", "--cron", "0 0 30 2 *", "--", "shard", "digits"], "cron must name a day that exists, got '0 0 30 2"),
        (["n", "--cron", "0 3 * * 7", "--", "shard", "digits"], "Kubernetes' week begins with Sunday, .* got '7'"),
        (["n", "--cron", "0 3 * * 2,5-7", "--", "shard"], "Kubernetes' week begins with Sunday, .* got '2,5-7'"),
        (["n", "--cron", "0 3 * * Sat-Sun", "--", "shard"], "Kubernetes' week begins with Sunday, .* 'Sat-Sun'"),
        (["n", "--cron", "0 9-5 * * *", "--", "shard", "digits"], "cron must have .* as hour, got '9-5'"),
        (["n", "--cron", "*/0 3 * * *", "--", "shard", "digits"], r"cron must have .* as minute, got '\*/0'"),
        (["n" * 39, "--cron", "0 3 * * *", "--", "shard", "digits"], "name must be at most 38 lower-case letters"),
        (["Nightly", "--cron", "0 3 * * *", "--", "shard", "digits"], "name must be .* got 'Nightly'"),
        (["n", "--cron", "0 3 * * *", "--timezone", "Mars", "--", "shard"], "timezone must be .* got 'Mars'"),
        (["n", "--cron", "0 3 * * *", "--timezone", "../x", "--", "shard"], "timezone must be .* got '../x'"),
        (["n", "--cron", "0 3 * * *", "--deadline-s", "5", "--", "shard"], "deadline_s must be at least 10"),
        (["n", "--cron", "0 3 * * *", "--image", "ddpm:latest", "--", "shard"], "image must have a tag other than"),
        (["n", "--cron", "0 3 * * *", "--namespace", "a b", "--", "shard"], "namespace must be .* got 'a b'"),
        (["n", "--cron", "0 3 * * *", "--", "shrad"], "command must be one of .* got 'shrad'"),
        (["n", "--cron", "0 3 * * *", "--", "ui"], "command must be one that a job can do, got ui"),
        (["n", "--cron", "0 3 * * *", "--", "shard", "--tracking-uri", "http://a:b@c"], "must not have a password"),
        (["n", "--cron", "0 3 * * *"], "schedule emit must be given a command after --"),
    ],
)
def test_what_kubernetes_would_refuse_or_nobody_could_mean_is_refused_in_a_line(words, said, capsys):
    code, error, bodies = emit(capsys, *words)

    assert code == 2
    assert bodies == []
    assert "\n" not in error
    assert re.search(said, error)


TIMES = ["* * * * *", "*/5 0-6,18 1,15 jan-mar,12 sun", "0 3 ? * MON-FRI", "0 3 * * */7", "@daily", "10-50/20 * * * *"]


@pytest.mark.parametrize("cron", TIMES)
def test_what_kubernetes_takes_as_a_time_is_taken(cron):
    check_cron(cron)


def test_the_longest_name_that_is_taken_makes_the_longest_that_kuberay_takes():
    scheduled(Site(), "n" * MAX_NAME, "0 3 * * *", ["shard"])

    assert len("n" * MAX_NAME + TICK) == MAX_JOB_NAME


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shard", "digits"], 'ddpm shard digits --storage "$DDPM_STORAGE"'),
        (["shard", "--storage=s3://b/r"], "ddpm shard --storage=s3://b/r"),
        (["shard", "--source", "s3://b/a b; rm"], "ddpm shard --source 's3://b/a b; rm' --storage \"$DDPM_STORAGE\""),
    ],
)
def test_a_jobs_command_line_is_quoted_and_finds_storage_and_cluster(words, line):
    assert entrypoint(words) == line
