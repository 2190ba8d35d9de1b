"""Ticks are compared with those found by looking at every minute of some days in turn."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workflows.cron import WEEKDAYS, Cron

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CHANGES = {
    "UTC": [datetime(2026, 12, 31, tzinfo=UTC), datetime(2028, 2, 28, tzinfo=UTC)],
    "Europe/Berlin": [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2026, 4, 4, tzinfo=UTC), datetime(2026, 10, 3, tzinfo=UTC)],  # by half an hour
    "Antarctica/Troll": [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)],  # by two hours
    "Africa/Cairo": [datetime(2026, 4, 23, tzinfo=UTC), datetime(2026, 10, 29, tzinfo=UTC)],  # at midnight
    "Asia/Kathmandu": [datetime(2026, 1, 31, tzinfo=UTC)],  # 5:45 from UTC
}
INSTANTS = st.sampled_from([(zone, day) for zone, days in CHANGES.items() for day in days])


@st.composite
def fields(draw, low, high):
    """A field's text, and what it means."""
    kind = draw(st.sampled_from(["*", "*/n", "a", "a-b", "a-b/n", "a,b"]))
    first, last = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    step = draw(st.integers(1, high - low))
    return {
        "*": ("*", range(low, high + 1)),
        "*/n": (f"*/{step}", range(low, high + 1, step)),
        "a": (str(first), [first]),
        "a-b": (f"{first}-{last}", range(first, last + 1)),
        "a-b/n": (f"{first}-{last}/{step}", range(first, last + 1, step)),
        "a,b": (f"{first},{last}", [first, last]),
    }[kind]


@st.composite
def lines(draw):
    """A cron line, and whether a time on the wall is one of its."""
    drawn = [draw(fields(*limits)) for limits in ((0, 59), (0, 23))]
    for low, high in ((1, 31), (1, 12), (0, 7)):  # mostly all: else few lines tick in a few days
        drawn.append(draw(st.one_of(*2 * [st.just(("*", range(low, high + 1)))], fields(low, high))))
    minutes, hours, days, months, weekdays = (set(values) for _, values in drawn)
    either = not any(drawn[index][0].startswith("*") for index in (2, 4))

    def matches(wall):
        day, weekday = wall.day in days, bool({wall.isoweekday(), wall.isoweekday() % 7} & weekdays)
        on_day = day or weekday if either else day and weekday
        return wall.minute in minutes and wall.hour in hours and wall.month in months and on_day

    return " ".join(text for text, _ in drawn), matches, len(hours) == 24


def can_exist(text):
    try:
        Cron(text, "UTC")
    except ValueError as err:
        return "a day that exists" not in str(err)
    return True


def minutes_between(start, end):
    return (start + index * MINUTE for index in range((end - start) // MINUTE + 1))


def exists(wall, zone):
    return wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall


def ticks_by_looking(matches, every_hour, zone, start, end):
    """By instants, each asked for what the wall shows; times that the wall leaves out, as if it had not been moved."""
    shown = {(instant, instant.astimezone(zone)) for instant in minutes_between(start, end)}
    ticks = {instant for instant, wall in shown if matches(wall) and (every_hour or not wall.fold)}
    if every_hour:
        return ticks
    walls = minutes_between((start - DAY).replace(tzinfo=None), (end + DAY).replace(tzinfo=None))
    moved = {wall.replace(tzinfo=zone).astimezone(UTC) for wall in walls if matches(wall) and not exists(wall, zone)}
    return ticks | {tick for tick in moved if start <= tick <= end}


@settings(deadline=None, max_examples=50)
@given(lines(), INSTANTS, st.integers(0, 24 * 60))
def test_the_ticks_are_those_that_looking_at_every_minute_finds(line, place, offset):
    text, matches, every_hour = line
    zone, day = place
    after, end = day + offset * MINUTE, day + 2 * DAY
    assume(can_exist(text))
    ticks = list(takewhile(lambda tick: tick <= end, Cron(text, zone).ticks(after)))

    differing = set(ticks) ^ set(ticks_by_looking(matches, every_hour, ZoneInfo(zone), after + MINUTE, end))

    assert min(differing, default=None) is None
    assert ticks == sorted(ticks)


def first(line, zone, after, count):
    return [tick.strftime("%m-%d %H:%M") for tick in islice(Cron(line, zone).ticks(after), count)]


SPRING, AUTUMN = datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)


def test_a_time_that_does_not_exist_ticks_an_hour_later():
    assert first("30 2 * * *", "Europe/Berlin", SPRING, 2) == ["03-29 01:30", "03-30 00:30"]


def test_a_time_that_comes_twice_ticks_once():
    assert first("30 2 * * *", "Europe/Berlin", AUTUMN, 2) == ["10-25 00:30", "10-26 01:30"]


def test_every_hour_is_every_hour_that_passes():
    night = timedelta(hours=11, minutes=59)

    assert first("0 * * * *", "Europe/Berlin", SPRING + night, 3) == ["03-29 00:00", "03-29 01:00", "03-29 02:00"]
    assert first("0 * * * *", "Europe/Berlin", AUTUMN + night, 3) == ["10-25 00:00", "10-25 01:00", "10-25 02:00"]


def test_the_midnight_after_a_change_is_not_forgotten():
    assert first("0 0 * * mon", "Europe/Berlin", SPRING, 1) == ["03-29 22:00"]


@pytest.mark.parametrize("weekday", ["0", "7", "sun", "SUN", "7-7", "0-0", "sun-sun", "0,7"])
def test_sunday_is_0_and_7(weekday):
    assert first(f"0 3 * * {weekday}", "UTC", SPRING, 2) == ["03-29 03:00", "04-05 03:00"]


@pytest.mark.parametrize(("weekdays", "days"), [("1-5", "mon-fri"), ("sat-sun", "0,6"), ("5-7", "fri,sat,sun")])
def test_weekdays_have_names(weekdays, days):
    assert first(f"0 3 * * {weekdays}", "UTC", SPRING, 9) == first(f"0 3 * * {days}", "UTC", SPRING, 9)
    assert WEEKDAYS[0] == "sun"


def test_day_or_weekday_will_do_where_both_are_given():
    assert first("0 0 13 * fri", "UTC", SPRING, 4) == ["04-03 00:00", "04-10 00:00", "04-13 00:00", "04-17 00:00"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "cron must be minute, hour, day, month and weekday, .*got ''"),
        ("@daily", "cron must be minute, hour, .*got '@daily'"),
        ("0 0 3 * * *", "cron must be minute, hour, .*got '0 0 3 [*] [*] [*]'"),
        ("60 3 * * *", "0 to 59, .* as minute, got '60'"),
        ("0 24 * * *", "0 to 23, .* as hour, got '24'"),
        ("0 3 0 * *", "1 to 31, .* as day, got '0'"),
        ("0 3 * 13 *", "1 to 12, .* as month, got '13'"),
        ("0 3 * * 8", "0 to 7, .* as weekday, got '8'"),
        ("0 3 * * monday", "as weekday, got 'monday'"),
        ("0 3 * * mon-fri/0", "as weekday, got 'mon-fri/0'"),
        ("9-5 3 * * *", "as minute, got '9-5'"),
        ("*/0 3 * * *", "as minute, got '[*]/0'"),
        ("5/10 3 * * *", "as minute, got '5/10'"),
        ("*/x 3 * * *", "as minute, got '[*]/x'"),
        (", 3 * * *", "as minute, got ''"),
        ("- 3 * * *", "as minute, got '-'"),
        ("-1 3 * * *", "as minute, got '-1'"),
        ("٣ 3 * * *", "as minute"),
        ("0 3 last * *", "as day, got 'last'"),
        ("0 0 30 2 *", "cron must name a day that exists, got '0 0 30 2 [*]'"),
    ],
)
def test_a_line_that_means_nothing_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        Cron(line, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "America", "../zones", "/etc/passwd", "+01:00"])
def test_a_zone_that_nobody_knows_is_refused(zone):
    with pytest.raises(ValueError, match="timezone must be a name such as Europe/Berlin or UTC, got"):
        Cron("0 3 * * *", zone)
