"""Who was champion when, and the way back: a list of events, to which every change adds one.

Rollbacks undo promotions one by one, as an editor undoes typing. Nothing here is ever taken away from the list.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "ddpm.champion."
"""of the tags of a registered model that hold the events; then the time, so that they sort"""
INTENDED = "ddpm.champion_intended"
"""tag of a registered model: the event that a command makes happen, written before it does anything"""
ROLLBACK = "rollback"


@dataclass(frozen=True)
class Event:
    """A version became champion."""

    at: str
    """UTC, as 2026-01-31T23:59:59.000000Z"""
    version: str
    replaced: str
    """the version that was champion until then; empty: none"""
    why: str
    by: str
    """the command: run, retrain with its run, promote, or rollback"""

    @property
    def tag(self) -> tuple[str, str]:
        """Name and value of the tag that keeps it."""
        value = asdict(self)
        return PREFIX + value.pop("at"), json.dumps(value)

    @property
    def intention(self) -> tuple[str, str]:
        """Name and value of the tag that says that it is to happen."""
        return INTENDED, json.dumps(asdict(self))


def event_now(version: str, replaced: str, why: str, by: str) -> Event:
    """An event of this moment."""
    return Event(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), version, replaced, why, by)


def events_of(tags: Mapping[str, str]) -> list[Event]:
    """The events among a registered model's tags, oldest first."""
    names = sorted(name for name in tags if name.startswith(PREFIX))
    return [Event(at=name.removeprefix(PREFIX), **json.loads(tags[name])) for name in names]


def unfinished_in(tags: Mapping[str, str]) -> Event | None:
    """The event that a registered model's tags say was to happen, and do not tell of."""
    intended = json.loads(tags.get(INTENDED, "null"))
    return None if intended is None or PREFIX + intended["at"] in tags else Event(**intended)


def line_of(events: Sequence[Event], current: str) -> list[str]:
    """The versions that rollbacks go back over, the oldest first, the champion last.

    A promotion puts a version at the end of the line, a rollback takes the last one away. What the events do not
    tell, as somebody set the alias otherwise, is put in where it shows.
    """
    line: list[str] = []
    for event in events:
        if event.by == ROLLBACK:
            _end_with(event.replaced, line)
            line.pop()
        else:
            _end_with(event.replaced, line)
        _end_with(event.version, line)
    _end_with(current, line)
    return line


def _end_with(version: str, line: list[str]) -> None:
    if version and line[-1:] != [version]:
        line.append(version)
