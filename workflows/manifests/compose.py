"""The MLflow server, PostgreSQL and an S3-compatible store on one machine with Docker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .object_store import ARGUMENTS, IMAGE
from .object_store import PORT as S3_PORT
from .tracking_server import (
    HOSTS,
    PORT,
    POSTGRES_IMAGE,
    POSTGRES_USER,
    SERVE,
    SERVER_KEYS,
    server_environment,
)

if TYPE_CHECKING:
    from .site import Site

IDENTITY = (
    '{"name": "ddpm", "actions": ["Admin"],'
    ' "credentials": [{"accessKey": "$$AWS_ACCESS_KEY_ID", "secretKey": "$$AWS_SECRET_ACCESS_KEY"}]}'
)
STORE_COMMAND = f"""\
umask 077
cat > /tmp/s3.json <<END
{{"identities": [{IDENTITY}]}}
END
exec weed {" ".join(ARGUMENTS)} -s3.config=/tmp/s3.json
"""
"""the list of who may do what is written where nothing stays: Compose can give a read-only container no file"""


def compose(site: Site) -> dict[str, Any]:
    """The compose file: reached on 127.0.0.1 alone, and with passwords that have to be given."""
    return {
        "name": "ddpm-tracking",
        "services": {
            "postgres": _service(
                POSTGRES_IMAGE,
                user=f"{POSTGRES_USER}:{POSTGRES_USER}",
                environment={"POSTGRES_USER": "mlflow", "POSTGRES_PASSWORD": _given("PGPASSWORD")},
                volumes=["postgres:/var/lib/postgresql/data"],
                tmpfs=["/tmp", "/var/run/postgresql:uid=999,gid=999"],  # noqa: S108 - the container's own
                healthcheck=_healthy("pg_isready", "-U", "mlflow", "-d", "mlflow"),
            ),
            "object-store": _service(
                IMAGE,
                user="1000:1000",
                entrypoint=["sh", "-c"],
                command=[STORE_COMMAND],
                environment={key: _given(key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
                ports=[f"127.0.0.1:{S3_PORT}:{S3_PORT}"],
                volumes=["objects:/data"],
                tmpfs=["/tmp"],  # noqa: S108 - the container's own
                healthcheck=_healthy("nc", "-z", "127.0.0.1", str(S3_PORT)),
            ),
            "mlflow": _service(
                site.image_name,
                build={"context": "..", "dockerfile": "infra/Dockerfile"},
                user="1000:1000",
                command=SERVE,
                ports=[f"127.0.0.1:{PORT}:{PORT}"],
                environment={
                    **server_environment(site, HOSTS),
                    **{key: _given(key) for key in SERVER_KEYS},
                },
                volumes=["./basic_auth.ini:/etc/mlflow/basic_auth.ini:ro"],
                tmpfs=["/tmp"],  # noqa: S108 - the container's own
                depends_on={name: {"condition": "service_healthy"} for name in ("postgres", "object-store")},
                healthcheck=_healthy("wget", "-q", "-O", "/dev/null", f"http://127.0.0.1:{PORT}/health"),
            ),
        },
        "volumes": {"postgres": {}, "objects": {}},
    }


def _service(image: str, **more: Any) -> dict[str, Any]:
    hardened = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    limits = {"deploy": {"resources": {"limits": {"cpus": "1", "memory": "4G"}}}}
    return {"image": image, "restart": "unless-stopped", **hardened, **limits, **more}


def _given(name: str) -> str:
    """A variable of whoever starts it; without it, Compose refuses to start."""
    return f"${{{name}:?set {name} (infra/README.md)}}"


def _healthy(*words: str) -> dict[str, Any]:
    return {"test": ["CMD", *words], "interval": "10s", "timeout": "5s", "retries": 10, "start_period": "60s"}
