"""Schedules and what became of their ticks, in a database that `add` and the daemon share.

No transaction reads before it writes, so that none has to be tried again, and what was decided about a schedule holds
only if nobody changed it meanwhile (`settle`).
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.schema import CreateIndex, CreateTable

from ..cron import Cron

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNNING, DONE, FAILED, MISSED, SKIPPED, INTERRUPTED = "running", "done", "failed", "missed", "skipped", "interrupted"
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
MAKING_TABLES = 0x6464706D  # "ddpm", among the numbers of PostgreSQL's advisory locks


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A command and when it is to run."""

    name: str
    cron: str
    timezone: str
    deadline_s: float
    """a tick that nobody attended to for so long is not run any more"""
    command: tuple[str, ...]
    """words after `ddpm`"""
    next_tick: datetime
    """the first of the calendar that nobody has attended to"""
    requested: datetime | None = None
    """a tick beside the calendar: asked for by hand, or of a run that was interrupted"""
    paused: bool = False

    def __post_init__(self) -> None:
        if not set(self.name) <= LETTERS or not 1 <= len(self.name) <= 100 or self.name.startswith("-"):
            raise ValueError(f"name must be 1 to 100 letters, digits or '-', the first not '-', got {self.name!r}")
        if not 0 < self.deadline_s <= timedelta(days=3650).total_seconds():
            raise ValueError(f"deadline_s must be above 0 and at most ten years, got {self.deadline_s:g}")

    @property
    def calendar(self) -> Cron:
        """Its ticks."""
        return Cron(self.cron, self.timezone)

    def is_due(self, now: datetime) -> bool:
        """Whether there is a tick to attend to."""
        return self.requested is not None or (not self.paused and self.next_tick <= now)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of a tick, or of several in a row as of one."""

    id: int = 0
    schedule: str
    scheduled_for: datetime
    """the last of the ticks"""
    since: datetime
    """the first of them"""
    num_ticks: int
    outcome: str
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    last_line: str = ""
    """of what the command said"""
    log: str = ""
    """path of all that it said"""


class Utc(sql.types.TypeDecorator[datetime]):
    """An instant; SQLite would forget its zone."""

    impl = sql.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sql.Dialect) -> datetime | None:
        """Into the database."""
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: sql.Dialect) -> datetime | None:
        """Out of it."""
        return value and value.replace(tzinfo=UTC)


class Words(sql.types.TypeDecorator[tuple[str, ...]]):
    """A command line, as a shell would read it."""

    impl = sql.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, _dialect: sql.Dialect) -> str | None:
        """Into the database."""
        return None if value is None else shlex.join(value)

    def process_result_value(self, value: str | None, _dialect: sql.Dialect) -> tuple[str, ...] | None:
        """Out of it."""
        return None if value is None else tuple(shlex.split(value))


METADATA = sql.MetaData()
SCHEDULES = sql.Table(
    "ddpm_schedules",
    METADATA,
    sql.Column("name", sql.String(100), primary_key=True),
    sql.Column("cron", sql.Text, nullable=False),
    sql.Column("timezone", sql.Text, nullable=False),
    sql.Column("deadline_s", sql.Double, nullable=False),
    sql.Column("command", Words, nullable=False),
    sql.Column("next_tick", Utc, nullable=False),
    sql.Column("requested", Utc),
    sql.Column("paused", sql.Boolean, nullable=False),
)
HISTORY = sql.Table(
    "ddpm_schedule_history",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("schedule", sql.String(100), nullable=False, index=True),
    sql.Column("scheduled_for", Utc, nullable=False),
    sql.Column("since", Utc, nullable=False),
    sql.Column("num_ticks", sql.Integer, nullable=False),
    sql.Column("outcome", sql.Text, nullable=False),
    sql.Column("started", Utc),
    sql.Column("ended", Utc),
    sql.Column("exit_code", sql.Integer),
    sql.Column("last_line", sql.Text, nullable=False),
    sql.Column("log", sql.Text, nullable=False),
)


class Schedules:
    """The tables of one database."""

    def __init__(self, engine: sql.Engine) -> None:
        self.engine = engine
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # its IF NOT EXISTS fails if two come at once
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(MAKING_TABLES)))
            for table in METADATA.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def add(self, schedule: Schedule, replaces: bool = False) -> None:
        """Raises ValueError if there is one of that name that it does not replace."""
        try:
            with self.engine.begin() as connection:
                if replaces:
                    connection.execute(sql.delete(SCHEDULES).where(SCHEDULES.c.name == schedule.name))
                connection.execute(sql.insert(SCHEDULES).values(asdict(schedule)))
        except sql.exc.IntegrityError:
            raise ValueError(
                f"name must be new, got {schedule.name!r}, which there is already; --replace it, or remove it"
            ) from None

    def remove(self, name: str) -> None:
        """Its history stays. Raises ValueError if there is none of that name."""
        with self.engine.begin() as connection:
            done = connection.execute(sql.delete(SCHEDULES).where(SCHEDULES.c.name == name))
        self._check_found(name, done.rowcount)

    def change(self, name: str, **values: Any) -> Schedule:
        """Set some columns; the schedule as it is then. Raises ValueError if there is none of that name."""
        with self.engine.begin() as connection:
            done = connection.execute(sql.update(SCHEDULES).where(SCHEDULES.c.name == name).values(values))
        self._check_found(name, done.rowcount)
        return self.get(name)

    def get(self, name: str) -> Schedule:
        """Raises ValueError if there is none of that name."""
        found = [schedule for schedule in self.all() if schedule.name == name]
        self._check_found(name, len(found))
        return found[0]

    def _check_found(self, name: str, count: int) -> None:
        if not count:
            known = ", ".join(schedule.name for schedule in self.all()) or "there are none"
            raise ValueError(f"name must be that of a schedule ({known}), got {name!r}")

    def all(self) -> list[Schedule]:
        """By name."""
        with self.engine.connect() as connection:
            rows = connection.execute(sql.select(SCHEDULES).order_by(SCHEDULES.c.name)).mappings().all()
        return [Schedule(**row) for row in rows]

    def settle(self, schedule: Schedule, next_tick: datetime, records: Sequence[Record]) -> list[Record]:
        """Note what becomes of a schedule's ticks, and which is the next; the records with their ids.

        Nothing is noted, and there are no records, if somebody changed the schedule since it was read.
        """
        same = [column.is_not_distinct_from(getattr(schedule, column.name)) for column in SCHEDULES.c]
        with self.engine.begin() as connection:
            moved = sql.update(SCHEDULES).where(*same).values(next_tick=next_tick, requested=None)
            if not connection.execute(moved).rowcount:
                return []
            return [replace(record, id=_insert(connection, record)) for record in records]

    def end(self, record: Record) -> None:
        """Note how a run ended. The tick of one that was interrupted is due again, unless its schedule is paused."""
        values = {name: getattr(record, name) for name in ("outcome", "ended", "exit_code", "last_line")}
        with self.engine.begin() as connection:
            running = sql.update(HISTORY).where(HISTORY.c.id == record.id, HISTORY.c.outcome == RUNNING)
            ended = connection.execute(running.values(values)).rowcount
            if ended and record.outcome == INTERRUPTED:
                again = sql.update(SCHEDULES).where(SCHEDULES.c.name == record.schedule, ~SCHEDULES.c.paused)
                connection.execute(again.values(requested=record.scheduled_for))

    def history(self, name: str = "", outcome: str = "", limit: int | None = None) -> list[Record]:
        """The newest records, of one schedule or all, the oldest first."""
        query = sql.select(HISTORY).order_by(HISTORY.c.id.desc()).limit(limit)
        query = query.where(HISTORY.c.schedule == name) if name else query
        query = query.where(HISTORY.c.outcome == outcome) if outcome else query
        with self.engine.connect() as connection:
            return [Record(**row) for row in reversed(connection.execute(query).mappings().all())]


def _insert(connection: sql.Connection, record: Record) -> int:
    values = {name: value for name, value in asdict(record).items() if name != "id"}
    return int(connection.execute(sql.insert(HISTORY).values(values).returning(HISTORY.c.id)).scalar_one())
