"""The database of the schedules: where it is, and one daemon at a time on it.

SQLite in the storage unless told otherwise; with PostgreSQL the daemon may change hosts.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError

from ..storage import JobFailed, file_lock
from .schedules import Schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Environment

AWAY = (OperationalError, InterfaceError, InternalError)
"""what is raised while a database is busy, full, gone or about to change hosts: it may well come back"""
URI_VARIABLE = "DDPM_SCHEDULES_URI"
FORM = "schedules_uri must be sqlite:///FILE or postgresql://USER@HOST/NAME"
BUSY_S = 30.0
"""how long SQLite waits for another writer"""
DAEMON_WAIT_S = 1.0
"""for a daemon that is just ending"""
DAEMON = 0x6464706E  # among the numbers of PostgreSQL's advisory locks
# A server hears within a minute that a client is cut off, and then frees its lock; a client soon that a server is.
CUT_OFF = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
    "options": "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}


@contextmanager
def open_schedules(environment: Environment, uri: str, makes: bool = False) -> Iterator[Schedules]:
    """Those at the URI, else at $DDPM_SCHEDULES_URI, else in the storage; `makes` a new SQLite file if need be.

    Raises ValueError if there are none there, JobFailed if the database fails while they are used.
    """
    engine = _engine(_url(environment, uri or os.environ.get(URI_VARIABLE, "")), makes)
    try:
        yield Schedules(engine)
    except DBAPIError as err:
        raise JobFailed(f"the database of the schedules says: {reason(err)}") from err
    finally:
        engine.dispose()


def _url(environment: Environment, uri: str) -> sql.URL:
    if not uri and not environment.folder.is_local:
        raise ValueError(
            f"schedules_uri must be given with a remote storage such as {environment.storage}: a database's"
        )
    try:
        url = sql.make_url(uri or f"sqlite:///{environment.folder.path}/schedules.db")
    except ArgumentError:
        raise ValueError(f"{FORM}, got {uri!r}") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg") or not url.database or url.database == ":memory:":
        raise ValueError(f"{FORM}, got {url.render_as_string()!r}")
    return url


def _engine(url: sql.URL, makes: bool) -> sql.Engine:
    if url.drivername == "sqlite":
        path = Path(url.database or "")
        if not makes and not path.exists():
            raise ValueError(f"there are no schedules in {path}: see ddpm schedule add, and --schedules-uri")
        path.parent.mkdir(parents=True, exist_ok=True)
        return sql.create_engine(url, connect_args={"timeout": BUSY_S})
    try:
        engine = sql.create_engine(url, connect_args=CUT_OFF, pool_pre_ping=True)
        engine.connect().close()
    except ModuleNotFoundError:
        raise ValueError("schedules_uri on PostgreSQL needs its driver: pip install 'ray-ddpm[postgres]'") from None
    except OperationalError as err:
        raise ValueError(
            f"schedules_uri must be a database that answers; {url.render_as_string()} says: {reason(err)}"
        ) from None
    return engine


def reason(err: DBAPIError) -> str:
    """What the database has to say, in one line."""
    return str(err.orig).splitlines()[0]


@contextmanager
def only_daemon(schedules: Schedules) -> Iterator[Callable[[], None]]:
    """Be the only daemon on these schedules. Raises JobFailed if there is another.

    What it gives is to be called before anything is started: it raises one of AWAY as long as the database is away,
    and JobFailed if another daemon came in meanwhile.
    """
    engine = schedules.engine
    with ExitStack() as held:
        if engine.dialect.name == "sqlite":
            path = Path(f"{engine.url.database}.lock")
            try:
                held.enter_context(file_lock(path, wait_s=DAEMON_WAIT_S))
            except JobFailed:
                raise _refusal(engine, f"process {path.read_text()}") from None
            yield lambda: None
        else:
            lock = held.enter_context(closing(_AdvisoryLock(engine)))
            lock.check()
            yield lock.check


def has_daemon(schedules: Schedules) -> bool:
    """Whether one is at work on these schedules."""
    try:
        with only_daemon(schedules):
            return False
    except JobFailed:
        return True


def _refusal(engine: sql.Engine, who: str) -> JobFailed:
    return JobFailed(f"there is a daemon already on {engine.url.render_as_string()}: {who}; one is enough")


class _AdvisoryLock:
    """PostgreSQL's, which lasts as long as the connection that took it."""

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine
        self._connection: sql.Connection | None = None

    def check(self) -> None:
        """Have it still, or again. Raises JobFailed if another has it, and one of AWAY if nobody can tell."""
        if self._connection is None:
            self._connection = self._take()
        try:
            self._connection.execute(sql.text("select 1"))
        except AWAY:
            self.close()  # another connection would be made in silence, without the lock
            raise

    def _take(self) -> sql.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        take = sql.select(sql.func.pg_try_advisory_lock(DAEMON))
        if connection.scalar(take):
            return connection
        time.sleep(DAEMON_WAIT_S)
        if connection.scalar(take):
            return connection
        connection.close()
        raise _refusal(self._engine, "another connection holds its lock")

    def close(self) -> None:
        """Give it back."""
        if self._connection is not None:
            with suppress(*AWAY):
                self._connection.invalidate()  # not into the pool, where it would keep the lock
                self._connection.close()
            self._connection = None
