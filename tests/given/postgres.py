"""A real PostgreSQL on a free port, of the machine's own binaries, in a folder that goes with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from waiting import wait_for

from workflows.cluster.local import free_ports

USER, PASSWORD = "ddpm", "not-a-secret"


def find_program(name):
    """Debian keeps them off the PATH. Skips the test where there is none."""
    if found := shutil.which(name):
        return found
    if shutil.which("pg_config"):
        folder = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
        if (Path(folder) / name).exists():
            return f"{folder}/{name}"
    return next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None) or pytest.skip(f"there is no {name}")


class Postgres:
    """At `uri` from `start` to `stop`, and again."""

    def __init__(self, folder):
        self.folder = folder
        self._port = free_ports(1)[0]
        self.uri = self.uri_of("postgres")
        password = folder / "password"
        password.write_text(PASSWORD)
        self._identity = {}
        if os.getuid() == 0:  # whose it refuses to be
            nobody = pwd.getpwnam("nobody")
            self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (folder, password):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        words = [f"--username={USER}", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"]
        initdb = self._started("initdb", f"--pgdata={folder}/data", *words)
        assert initdb.wait() == 0, (folder / "log").read_text()

    def uri_of(self, database):
        """Of one of its databases."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def make_database(self, name):
        """Its URI."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f'create database "{name}"')
        return self.uri_of(name)

    def start(self):
        settings = ["-cfsync=off", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.folder}"]
        self._process = self._started("postgres", "-D", f"{self.folder}/data", f"-p{self._port}", *settings)
        wait_for(self._answers, self._process, limit_s=60)

    def stop(self):
        """At once; whoever is connected is cut off."""
        self._process.send_signal(3)  # SIGQUIT: its own "immediate shutdown"
        self._process.wait()

    def _answers(self):
        try:
            psycopg.connect(self.uri, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _started(self, program, *words):
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [find_program(program), *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"]}, **self._identity,
            )  # fmt: skip


@contextmanager
def open_postgres():
    """A server, started; its `uri` is of an empty database, `make_database` makes others."""
    with tempfile.TemporaryDirectory(prefix="ddpm-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
