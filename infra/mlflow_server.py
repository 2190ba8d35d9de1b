#!/usr/bin/env python3
"""An MLflow server on one machine: accounts, a PostgreSQL of its own, artifacts in S3. Runs until it is interrupted.

    export MLFLOW_AUTH_ADMIN_PASSWORD=… MLFLOW_ARTIFACTS_DESTINATION=s3://BUCKET/mlflow
    python infra/mlflow_server.py FOLDER

All that it keeps is in FOLDER. MLflow's own variables say the rest: MLFLOW_HOST (127.0.0.1), MLFLOW_PORT (5000),
MLFLOW_WORKERS (4), MLFLOW_SERVER_ALLOWED_HOSTS, MLFLOW_S3_ENDPOINT_URL; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
AWS_DEFAULT_REGION are those of the store. PG_BINDIR names PostgreSQL's programs where `pg_config --bindir` does not.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg

from workflows.manifests.tracking_server import BASIC_AUTH, SERVE

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = DATABASE = "mlflow"
UNPRIVILEGED = "postgres"
"""whom PostgreSQL runs as where we are root, which it refuses to be"""
START_TIMEOUT_S = 60.0
MAX_SOCKET_PATH = 107
MIN_PASSWORD = 12
"""MLflow's own rule"""


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is interrupted; its exit code, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description="An MLflow server with PostgreSQL and S3", epilog=f"see {__file__}")
    parser.add_argument("folder", type=Path, help="for the database and the key of the sessions")
    folder = parser.parse_args(argv).folder.absolute()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        check(folder, dict(os.environ))
        with alone(folder):
            key = session_key(folder)
            with Postgres(folder).running() as environment:
                return serve(folder, {**os.environ, **environment, "MLFLOW_FLASK_SERVER_SECRET_KEY": key})
    except ValueError as err:
        print(f"mlflow_server: error: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def check(folder: Path, environment: dict[str, str]) -> None:
    """Raises ValueError for what is missing or cannot work, in one line."""
    if len(environment.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")) < MIN_PASSWORD:
        raise ValueError(
            f"MLFLOW_AUTH_ADMIN_PASSWORD must be a password of at least {MIN_PASSWORD} characters: there is no default"
        )
    destination = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    if not destination.startswith("s3://"):
        raise ValueError(f"MLFLOW_ARTIFACTS_DESTINATION must be s3://BUCKET/FOLDER, got {destination!r}")
    if len(f"{folder}/socket/.s.PGSQL.5432") > MAX_SOCKET_PATH:
        raise ValueError(f"folder must have a shorter path, for a socket in it, got {folder}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only server of this folder. Raises ValueError if there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"folder must be one that no server uses; one already uses {folder}") from None
        yield


def session_key(folder: Path) -> str:
    """What signs the sessions of browsers: made once, readable by us alone."""
    file = folder / "session.key"
    if not file.exists():
        new = file.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(secrets.token_urlsafe(32))
        new.rename(file)
    return file.read_text()


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL in a folder, reached by a socket in it and nothing else.

    It asks for no password: only its own user, and root, may enter the folder that the socket is in.
    """

    folder: Path

    @contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """It, until the block ends, with its database; what its clients need in their environment."""
        for each in (self.socket, self.data.parent):
            each.mkdir(exist_ok=True, mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(each, UNPRIVILEGED)
        self._make()
        self._stop()  # one whose server was killed
        process = subprocess.Popen(
            [self._program("postgres"), "-D", self.data, "-k", self.socket, "-c", "listen_addresses="],
            start_new_session=True,  # Ctrl-C is for us: MLflow is stopped first
            **self._as_whom,
        )
        try:
            self._await(process)
            yield {"PGHOST": str(self.socket)}
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's "fast": ends sessions, keeps all that was committed
            process.wait()

    @property
    def data(self) -> Path:
        """Where its tables are."""
        return self.folder / "postgres" / "data"

    @property
    def socket(self) -> Path:
        """The folder of its socket."""
        return self.folder / "socket"

    @property
    def _as_whom(self) -> dict[str, Any]:
        other = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
        return {"cwd": self.data.parent, **(other if os.geteuid() == 0 else {})}

    def _program(self, name: str) -> str:
        folder = os.environ.get("PG_BINDIR")
        if not folder and shutil.which("pg_config"):
            folder = subprocess.check_output(["pg_config", "--bindir"], text=True).strip()
        if not (found := shutil.which(name, path=folder or None)):
            raise ValueError(f"PG_BINDIR must name the folder of PostgreSQL's programs; there is no {name}")
        return found

    def _make(self) -> None:
        """The cluster of databases, if there is none: whole, or not there."""
        if self.data.exists():
            return
        new = self.data.with_name("new")
        shutil.rmtree(new, ignore_errors=True)
        words = [self._program("initdb"), "-D", str(new), "-U", USER, "--auth=trust", "--encoding=UTF8",
                 "--locale=C.UTF-8"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False, **self._as_whom)
        if done.returncode:
            raise ValueError(f"folder must be one that PostgreSQL can use: {done.stderr.strip().splitlines()[-1]}")
        new.rename(self.data)

    def _stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            words = [self._program("pg_ctl"), "stop", "-D", str(self.data), "-m", "fast"]
            subprocess.run(words, check=False, capture_output=True, **self._as_whom)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Until it answers and has our database. Raises ValueError if it ends, or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                self._make_database()
                return
            time.sleep(0.1)
        raise ValueError(f"folder must hold a PostgreSQL that starts; what it said is above: {self.data}")

    def _make_database(self) -> None:
        with psycopg.connect(host=str(self.socket), user=USER, dbname="postgres", autocommit=True) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
                connection.execute(f"create database {DATABASE}")


def serve(folder: Path, environment: dict[str, str]) -> int:
    """MLflow's server in a process group of its own, which ends when we do; its exit code."""
    (folder / "basic_auth.ini").write_text(BASIC_AUTH)
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "basic_auth.ini")
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a gigabyte of processes for jobs that we do not have
    environment["PYTHONWARNINGS"] = "ignore"  # MLflow's own dependencies warn each other at every start
    process = subprocess.Popen([sys.executable, "-m", *SERVE], env=environment, start_new_session=True)
    try:
        return process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
