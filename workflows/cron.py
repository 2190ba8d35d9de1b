"""Cron lines: the instants at which they tick, in a time zone with its changes to and from daylight-saving time.

APScheduler's CronTrigger does the calendar, but of the wall clock alone, as if that were UTC: of a zone with changes
it forgets midnights of weekdays (a day is not always 24 hours), and its weekdays are numbered from Monday. What a time
on the wall is in UTC is decided here, by cron's own rules.
"""

from __future__ import annotations

import heapq
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from apscheduler.triggers.cron import CronTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator

SLACK = timedelta(hours=3)
"""more than any zone's clock is put forward or back"""
MONTHS = ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
EXAMPLE = 'such as "0 3 * * *" (at 3:00) or "30 6 * * mon-fri"'


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, MONTHS),
    _Field("weekday", 0, 7, WEEKDAYS),
)


class Cron:
    """A cron line in a time zone.

    As cron has it: weekdays are 0 or 7 (Sunday) to 6, or names; where day and weekday are both given, either will do.
    A time of day that comes twice, when clocks go back, ticks the first time; one that is left out, when they go
    forward, ticks as much later as they go. A line for every hour ticks by the hours that really pass.
    """

    def __init__(self, line: str, timezone: str) -> None:
        """Raises ValueError for a line that means nothing, or a zone that nobody knows."""
        words = line.split()
        if len(words) != len(FIELDS):
            raise ValueError(f"cron must be minute, hour, day, month and weekday, {EXAMPLE}, got {line!r}")
        fields = zip(FIELDS, words, strict=True)
        minutes, hours, days, months, weekdays = (_values(field, word) for field, word in fields)
        self._every_hour = hours == "*"
        either = not (words[2].startswith("*") or words[4].startswith("*"))
        self._triggers = [
            CronTrigger(minute=minutes, hour=hours, day=day, month=months, day_of_week=weekday, timezone=UTC)
            for day, weekday in ([(days, "*"), ("*", weekdays)] if either else [(days, weekdays)])
        ]
        self._zone = zone_of(timezone)
        if next(self._walls(datetime(2000, 1, 1, tzinfo=UTC)), None) is None:
            raise ValueError(f"cron must name a day that exists, got {line!r}")

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Its ticks after an instant, in order and without end, in UTC."""
        last, pending = after, list[datetime]()
        for wall in self._walls(after.astimezone(self._zone).replace(tzinfo=UTC) - SLACK):
            first, second = (wall.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            while pending and pending[0] < min(first, second) - SLACK:  # no later wall time can come before it
                tick = heapq.heappop(pending)
                if tick > last:
                    last = tick
                    yield tick
            for tick in self._instants(first, second):
                heapq.heappush(pending, tick)

    def _instants(self, first: datetime, second: datetime) -> tuple[datetime, ...]:
        """When a wall time ticks. Its two readings differ where clocks go back, or forward: then they are swapped."""
        if not self._every_hour or first == second:
            return (first,)
        return (first, second) if first < second else ()

    def _walls(self, start: datetime) -> Iterator[datetime]:
        return heapq.merge(*(_series(trigger, start) for trigger in self._triggers))


def _series(trigger: CronTrigger, start: datetime) -> Iterator[datetime]:
    wall = trigger.get_next_fire_time(None, start)
    while wall is not None:
        yield wall
        wall = trigger.get_next_fire_time(wall, wall)


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of a name. Raises ValueError if there is none."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"timezone must be a name such as Europe/Berlin or UTC, got {name!r}") from None


def _values(field: _Field, text: str) -> str:
    """A field as CronTrigger writes it: "*", or numbers with commas; weekdays from Monday on."""
    values = {value for part in text.split(",") for value in _part(field, part)}
    if field.names is WEEKDAYS:
        values = {(value - 1) % 7 for value in values}
    everything = 7 if field.names is WEEKDAYS else field.high - field.low + 1
    return "*" if len(values) == everything else ",".join(map(str, sorted(values)))


def _part(field: _Field, part: str) -> range:
    """What stands between commas: *, 5, 1-5, */2 or 1-5/2. Raises ValueError for anything else."""
    span, slash, step = part.partition("/")
    first, dash, last = span.partition("-")
    low, high = _number(field, first), _number(field, last if dash else first)
    if span == "*":
        low, high = field.low, field.high
    if field.names is WEEKDAYS and high == 0 < low:
        high = 7  # sat-sun
    every = int(step) if step.isdecimal() else (0 if slash else 1)
    is_step = not slash or ((span == "*" or dash) and 1 <= every <= field.high - field.low)
    if not field.low <= low <= high <= field.high or not is_step:
        raise ValueError(
            f"cron must have {field.low} to {field.high}, *, a range a-b or a step */n or a-b/n as {field.name}, "
            f"got {part!r}"
        )
    return range(low, high + 1, every)


def _number(field: _Field, word: str) -> int:
    """-1, which no field allows, for a word that is none of its."""
    if word.lower() in field.names:
        return field.names.index(word.lower()) if word else -1
    return int(word) if word.isascii() and word.isdecimal() else -1
