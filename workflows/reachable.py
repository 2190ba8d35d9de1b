"""What can be reached, of all that is kept, from what must stay: over names, as a run names its data in tags."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Thing:
    """Something that is kept, takes room, and may be found by any of its names."""

    id: str
    """its path in the storage, runs:/ID or models:/NAME/VERSION"""
    kind: str
    names: frozenset[str] = frozenset()
    """besides its id"""
    leads_to: frozenset[str] = frozenset()
    """names of things that are needed where this one is"""
    num_bytes: int = 0
    changed: float = 0.0
    """when last, in seconds since 1970"""
    lock: str = ""
    """held by who works on it; empty: there is none"""
    artifacts: str = ""
    """URI of its files, if they lie elsewhere in the storage"""


def unreachable(things: Sequence[Thing], roots: Iterable[str]) -> list[Thing]:
    """The things that none of the roots (ids or names) leads to, over however many others; in the order of `things`."""
    named = defaultdict(list)
    for thing in things:
        for name in {thing.id, *thing.names}:
            named[name].append(thing)
    seen, found, ahead = set[str](), set[str](), list(roots)
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        for thing in named[name]:
            if thing.id not in found:
                found.add(thing.id)
                ahead.extend(thing.leads_to)
    return [thing for thing in things if thing.id not in found]
