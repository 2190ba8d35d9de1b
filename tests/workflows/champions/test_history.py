"""The list of who was champion, and the way back over it."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.champions.history import ROLLBACK, Event, events_of, line_of


def events(*versions):
    """Promotions of these versions, one after the other; "<" is a rollback."""
    made, line = [], []
    for number, word in enumerate(versions):
        replaced = line[-1] if line else ""
        if word == "<":
            line.pop()
        else:
            line.append(word)
        by = ROLLBACK if word == "<" else "promote"
        made.append(Event(f"2026-01-01T00:00:00.{number:06d}Z", line[-1], replaced, "why", by))
    return made


@pytest.mark.parametrize(
    ("happened", "line"),
    [
        ("1", "1"),
        ("1 2 3", "1 2 3"),
        ("1 2 3 <", "1 2"),
        ("1 2 3 < <", "1"),
        ("1 2 < 3", "1 3"),
        ("1 2 < 3 <", "1"),
        ("1 2 3 2", "1 2 3 2"),
        ("1 2 3 2 < <", "1 2"),
    ],
)
def test_a_rollback_undoes_the_last_promotion_that_is_not_undone(happened, line):
    told = events(*happened.split())

    assert line_of(told, told[-1].version) == line.split()


PROMOTED = st.lists(st.sampled_from("12345"), min_size=1).map(lambda made: [version for version, _ in groupby(made)])


@given(PROMOTED)
def test_as_many_rollbacks_as_promotions_lead_back_to_the_first(promoted):
    told = events(*promoted, *["<"] * (len(promoted) - 1))

    assert line_of(told, promoted[0]) == promoted[:1]


def test_an_alias_that_somebody_set_otherwise_is_in_the_line():
    told = events("1", "2")
    moved = Event("2026-02-01T00:00:00.000000Z", "7", "5", "why", "promote")

    assert line_of(told, "5") == ["1", "2", "5"]
    assert line_of([*told, moved], "7") == ["1", "2", "5", "7"]
    assert line_of([], "5") == ["5"]


def test_a_rollback_from_an_alias_that_somebody_set_leads_to_the_last_that_is_told():
    back = Event("2026-02-01T00:00:00.000000Z", "2", "5", "why", ROLLBACK)

    assert line_of([*events("1", "2"), back], "2") == ["1", "2"]


def test_events_survive_as_tags_in_their_order():
    told = events("1", "2", "<")
    tags = dict(event.tag for event in reversed(told))

    assert events_of({**tags, "ddpm.other": "1"}) == told
