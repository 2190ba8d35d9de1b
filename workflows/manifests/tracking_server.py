"""The MLflow server, and the PostgreSQL that it keeps its tables in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .pods import container, pod, pod_security, resources, scratch, secret_env
from .site import SERVER_SECRETS, metadata

if TYPE_CHECKING:
    from .site import Site

DATABASE = "postgresql+psycopg://mlflow@/mlflow"
"""host and password are in the environment (PGHOST, PGPASSWORD): a URI would show them"""
SERVE = ["mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", DATABASE]
BASIC_AUTH = f"""\
[mlflow]
default_permission = READ
database_uri = {DATABASE}
admin_username = admin
auth_cache_ttl_seconds = 60
"""
"""The administrator's password is MLFLOW_AUTH_ADMIN_PASSWORD. Without the cache every request costs a slow hash; with
it, a password that was changed may be taken for a minute more."""
POSTGRES_IMAGE, POSTGRES_USER = "postgres:17.6-bookworm", 999
PORT, DATABASE_PORT = 5000, 5432
HOSTS = "localhost,localhost:*,127.0.0.1:*,mlflow,mlflow:*"
"""names under which a browser or a client may ask for it: others are what a rebinding attack would use"""


def server_environment(site: Site, hosts: str) -> dict[str, str]:
    """What the server is told besides its secrets."""
    return {
        "AWS_DEFAULT_REGION": site.region,
        "HOME": "/tmp",  # noqa: S108 - a volume of the container's own
        "MLFLOW_ARTIFACTS_DESTINATION": site.artifacts,
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/basic_auth.ini",
        "MLFLOW_HOST": "0.0.0.0",  # noqa: S104 - who gets that far, the network policies say
        "MLFLOW_PORT": str(PORT),
        "MLFLOW_S3_ENDPOINT_URL": site.object_store,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WORKERS": "4",
        "PGHOST": "postgres",
    }


SERVER_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "PGPASSWORD",
)


def tracking_server(site: Site) -> list[dict[str, Any]]:
    """The server behind a Service, and its settings."""
    domain = f"mlflow.{site.namespace}.svc"
    hosts = f"{HOSTS},{domain},{domain}:*,{domain}.cluster.local:*"
    values = server_environment(site, hosts)
    health = {"httpGet": {"path": "/health", "port": PORT}}
    server = container(
        "mlflow",
        site.image_name,
        resources(1, "4Gi"),
        {"tmp": "/tmp"},  # noqa: S108 - a volume of the pod's own
        command=SERVE,
        ports=[{"name": "http", "containerPort": PORT}],
        env=[
            *({"name": name, "value": value} for name, value in values.items()),
            *(secret_env(key, SERVER_SECRETS, key) for key in SERVER_KEYS),
        ],
        startupProbe={**health, "periodSeconds": 5, "failureThreshold": 60},
        readinessProbe={**health, "periodSeconds": 10},
        livenessProbe={**health, "periodSeconds": 30, "timeoutSeconds": 10},
        volumeMounts=[{"name": "config", "mountPath": "/etc/mlflow", "readOnly": True}],
    )
    spec = pod([server], [scratch("tmp", "10Gi"), {"name": "config", "configMap": {"name": "mlflow"}}])
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(site, "mlflow"),
            "data": {"basic_auth.ini": BASIC_AUTH},
        },
        service(site, "mlflow", PORT),
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(site, "mlflow"),
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},  # two versions must not change the tables at once
                **labelled("mlflow", spec),
            },
        },
    ]


def database(site: Site) -> list[dict[str, Any]]:
    """PostgreSQL with a disk."""
    ready = {"exec": {"command": ["pg_isready", "-U", "mlflow", "-d", "mlflow"]}}
    server = container(
        "postgres",
        POSTGRES_IMAGE,
        resources(1, "2Gi"),
        {"data": "/var/lib/postgresql/data", "tmp": "/tmp", "run": "/var/run/postgresql"},  # noqa: S108 - as above
        ports=[{"name": "postgres", "containerPort": DATABASE_PORT}],
        env=[
            {"name": "POSTGRES_USER", "value": "mlflow"},
            {"name": "POSTGRES_INITDB_ARGS", "value": "--auth-host=scram-sha-256 --auth-local=scram-sha-256"},
            {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},  # the disk's own folder has lost+found
            secret_env("POSTGRES_PASSWORD", SERVER_SECRETS, "PGPASSWORD"),
            secret_env("PGPASSWORD", SERVER_SECRETS, "PGPASSWORD"),  # for pg_dump in the pod
        ],
        readinessProbe={**ready, "periodSeconds": 10},
        livenessProbe={**ready, "periodSeconds": 30, "timeoutSeconds": 10, "initialDelaySeconds": 60},
    )
    spec = pod([server], [scratch("tmp", "1Gi"), scratch("run", "10Mi")])
    spec |= {"securityContext": pod_security(POSTGRES_USER), "terminationGracePeriodSeconds": 60}
    return [service(site, "postgres", DATABASE_PORT), with_disk(site, "postgres", spec, "20Gi")]


def service(site: Site, name: str, port: int) -> dict[str, Any]:
    """A name for pods of this name, inside the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(site, name),
        "spec": {"selector": {"app.kubernetes.io/name": name}, "ports": [{"port": port, "targetPort": port}]},
    }


def labelled(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A template of pods, and the selector that finds them."""
    labels = {"app.kubernetes.io/name": name}
    return {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}


def with_disk(site: Site, name: str, spec: dict[str, Any], size: str) -> dict[str, Any]:
    """One pod with the disk `data`, which stays when the pod goes."""
    disk = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(site, name),
        "spec": {"serviceName": name, "replicas": 1, **labelled(name, spec), "volumeClaimTemplates": [disk]},
    }
