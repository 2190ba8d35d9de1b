"""The alias `champion`: set after a decision or by hand, taken back, and never over somebody else's change.

What is to happen is written down before it does: what a killed command has begun, the next one finishes.
"""

from __future__ import annotations

import json

from ..progress import say
from ..tracking import (
    CHAMPION,
    OUTCOME_TAG,
    REASONS_TAG,
    ModelVersion,
    Tracker,
    champion_of,
    find_version,
    model_tags,
    set_alias,
    tag_model,
    tag_version,
)
from .gate import Decision
from .history import INTENDED, ROLLBACK, Event, event_now, events_of, line_of, unfinished_in

PROMOTED, REFUSED = "promoted", "refused"


def carry_out(tracker: Tracker, candidate: ModelVersion, champion: str, decision: Decision, by: str) -> Decision:
    """Make the candidate champion if that was decided, and the version it was compared with ("": none) still is.

    If it is not, nothing is set, and the decision that comes back is a refusal that says so. It is kept in the
    candidate's tags. Done twice, it is done once.
    """
    if decision.promoted:
        decision = _crown_unless_moved(tracker, candidate, champion, decision, by)
    outcome = PROMOTED if decision.promoted else REFUSED
    tag_version(tracker, candidate, {OUTCOME_TAG: outcome, REASONS_TAG: json.dumps(decision.reasons)})
    return decision


def promote(tracker: Tracker, model: ModelVersion, why: str) -> None:
    """Make a version champion because somebody says so; if it is, nothing changes."""
    _settle(tracker, model.name)
    champion = champion_of(tracker, model.name)
    if champion is None or champion.version != model.version:
        _crown(tracker, model, event_now(model.version, _number(champion), why, "promote"))


def rollback(tracker: Tracker, name: str, why: str) -> ModelVersion:
    """Make the champion before the present one's promotion champion again; that version.

    A second rollback goes back one more; one after a rollback that was killed finishes that. Raises ValueError if there
    is none, or it was deleted.
    """
    finished, champion = _settle(tracker, name), champion_of(tracker, name)
    if champion is None:
        raise ValueError(f"{name} must have a champion to roll back, got none; make one: ddpm promote {name}/VERSION")
    if finished is not None and finished.by == ROLLBACK:
        return champion
    line = line_of(history(tracker, name), champion.version)
    if len(line) < 2:
        raise ValueError(f"there is no champion of {name} before version {champion.version} to roll back to")
    if (model := find_version(tracker, name, line[-2])) is None:
        raise ValueError(
            f"version {line[-2]} of {name}, the champion before version {champion.version}, was deleted; "
            f"make another one champion: ddpm promote {name}/VERSION"
        )
    _crown(tracker, model, event_now(model.version, champion.version, why, ROLLBACK))
    return model


def history(tracker: Tracker, name: str) -> list[Event]:
    """Who became champion when and why, oldest first. Raises ValueError if there is no such model."""
    return events_of(model_tags(tracker, name))


def fallback(tracker: Tracker, name: str) -> str:
    """The URI of the version that a rollback would make champion; "" if there is none."""
    if (champion := champion_of(tracker, name)) is None:
        return ""
    tags = model_tags(tracker, name)
    told, begun = events_of(tags), unfinished_in(tags)
    if begun is not None and begun.version == champion.version:
        told.append(begun)
    line = line_of(told, champion.version)
    return f"models:/{name}/{line[-2]}" if len(line) > 1 else ""


def _crown_unless_moved(
    tracker: Tracker, candidate: ModelVersion, champion: str, decision: Decision, by: str
) -> Decision:
    _settle(tracker, candidate.name)
    now = _number(champion_of(tracker, candidate.name))
    event = event_now(candidate.version, champion, decision.why, by)
    if now == candidate.version:
        _tell_once(tracker, candidate.name, event)
    elif now == champion:
        _crown(tracker, candidate, event)
    else:
        return Decision(False, (_moved(champion, now),))
    return decision


def _crown(tracker: Tracker, model: ModelVersion, event: Event) -> None:
    """What is to happen, then the alias. Nothing excludes another one between question and answer: MLflow sets an alias
    whatever it was.
    """
    tag_model(tracker, model.name, event.intention)
    _make_happen(tracker, model, event)


def _settle(tracker: Tracker, name: str) -> Event | None:
    """Finish what a killed command has begun, unless somebody has moved the alias since; what that was, if anything.

    Raises ValueError if there is no such model.
    """
    event = unfinished_in(model_tags(tracker, name))
    if event is None:
        return None
    now, model = _number(champion_of(tracker, name)), find_version(tracker, name, event.version)
    begun = f"champion: making version {event.version} of {name} champion ({event.by})"
    if model is None or now not in (event.version, event.replaced):
        was, is_now = _called(event.replaced), "its own is deleted" if model is None else f"{_called(now)} is now"
        say(f"{begun} was begun when {was} was champion, and {is_now}: it is left")
        tag_model(tracker, name, (INTENDED, "null"))
        return None
    say(f"{begun} was begun, and is finished")
    _make_happen(tracker, model, event)
    return event


def _make_happen(tracker: Tracker, model: ModelVersion, event: Event) -> None:
    """The alias, then the event: what is told has happened."""
    set_alias(tracker, model, CHAMPION, {"ddpm.champion_since": event.at, "ddpm.champion_why": event.why})
    tag_model(tracker, model.name, event.tag)


def _tell_once(tracker: Tracker, name: str, event: Event) -> None:
    """The event of a champion whose promotion was killed before it told."""
    told = history(tracker, name)
    if not told or told[-1].version != event.version:
        tag_model(tracker, name, event.tag)


def _number(model: ModelVersion | None) -> str:
    return "" if model is None else model.version


def _moved(before: str, now: str) -> str:
    return (
        f"the champion was {_called(before)} when this was decided, and is {_called(now)} now; run again to compare "
        f"with that"
    )


def _called(number: str) -> str:
    return f"version {number}" if number else "nobody"
