"""The alias and its history on a real MLflow."""

import json
from itertools import count

import pytest

from workflows.champions.gate import Decision
from workflows.champions.history import ROLLBACK
from workflows.champions.promotion import carry_out, fallback, history, promote, rollback
from workflows.storage import Environment
from workflows.tracking import CHAMPION, DIGEST_TAG, Tracker, champion_of, find_version, model_version

YES, NO = Decision(True, ("it is better",)), Decision(False, ("it is worse", "it copies"))
NAMES = (f"model-{number}" for number in count())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where MLflow's database is; making it takes seconds."""
    environment = Environment(storage=str(tmp_path_factory.mktemp("champions")))
    assert Tracker(environment).client.search_registered_models() == []
    return environment


@pytest.fixture
def tracker(place):
    return Tracker(place)


@pytest.fixture
def versions(tracker):
    return made_versions(tracker)


def made_versions(tracker):
    """Four versions of a model that no other test has, by their number; of number 0 there is none."""
    name = next(NAMES)
    tracker.client.create_registered_model(name)
    for _ in range(4):
        tracker.client.create_model_version(name, "/nowhere", tags={DIGEST_TAG: "0" * 32})
    return [find_version(tracker, name, str(number)) for number in range(5)]


def champion(tracker, versions):
    found = champion_of(tracker, versions[1].name)
    return 0 if found is None else int(found.version)


def told(tracker, versions):
    return [(event.version, event.replaced, event.by) for event in history(tracker, versions[1].name)]


def test_the_first_champion_and_the_next_are_told_of_with_why(tracker, versions):
    carry_out(tracker, versions[1], "", YES, "run")
    carry_out(tracker, versions[2], "1", YES, "retrain abc")
    now = model_version(tracker, versions[1].name)

    assert now.version == "2"
    assert now.tags["ddpm.champion_why"] == "it is better"
    assert now.tags["ddpm.champion_since"] == history(tracker, now.name)[1].at
    assert told(tracker, versions) == [("1", "", "run"), ("2", "1", "retrain abc")]


def test_a_refusal_sets_nothing_but_its_reasons_as_tags_of_the_candidate(tracker, versions):
    carry_out(tracker, versions[1], "", YES, "run")
    decision = carry_out(tracker, versions[2], "1", NO, "run")
    tags = find_version(tracker, versions[1].name, "2").tags

    assert decision == NO
    assert champion(tracker, versions) == 1
    assert (tags["ddpm.outcome"], json.loads(tags["ddpm.reasons"])) == ("refused", ["it is worse", "it copies"])
    assert len(told(tracker, versions)) == 1


@pytest.mark.parametrize(
    ("compared_with", "now", "words"),
    [
        ("1", 3, "was version 1 when this was decided, and is version 3 now"),
        ("", 3, "was nobody when this was decided, and is version 3 now"),
        ("1", 0, "was version 1 when this was decided, and is nobody now"),
    ],
)
def test_an_alias_that_somebody_else_moved_is_left_and_the_promotion_refused(
    tracker, versions, compared_with, now, words
):
    if now:
        tracker.client.set_registered_model_alias(versions[1].name, CHAMPION, str(now))
    decision = carry_out(tracker, versions[2], compared_with, YES, "retrain abc")

    assert not decision.promoted
    assert words in decision.why
    assert champion(tracker, versions) == now
    assert told(tracker, versions) == []
    assert find_version(tracker, versions[1].name, "2").tags["ddpm.outcome"] == "refused"


def test_a_champion_that_was_deleted_is_none(tracker, versions):
    carry_out(tracker, versions[1], "", YES, "run")
    tracker.client.delete_model_version(versions[1].name, "1")
    refused = carry_out(tracker, versions[2], "1", YES, "retrain abc")
    promoted = carry_out(tracker, versions[2], "", YES, "retrain def")

    assert not refused.promoted
    assert promoted.promoted
    assert champion(tracker, versions) == 2


def test_what_is_carried_out_twice_is_told_of_once(tracker, versions):
    carry_out(tracker, versions[1], "", YES, "run")
    for _ in range(2):
        assert carry_out(tracker, versions[2], "1", YES, "retrain abc") == YES

    assert told(tracker, versions) == [("1", "", "run"), ("2", "1", "retrain abc")]


def test_what_was_killed_between_the_alias_and_the_history_is_told_of_by_the_next(tracker, versions):
    carry_out(tracker, versions[1], "", YES, "run")
    tracker.client.set_registered_model_alias(versions[1].name, CHAMPION, "2")
    carry_out(tracker, versions[2], "1", YES, "retrain abc")

    assert told(tracker, versions) == [("1", "", "run"), ("2", "1", "retrain abc")]


ACTS = {
    "promote": lambda tracker, versions: promote(tracker, versions[4], "sharper"),
    "rollback": lambda tracker, versions: rollback(tracker, versions[1].name, "blurred"),
    "carry_out": lambda tracker, versions: carry_out(tracker, versions[4], "3", YES, "retrain abc"),
}
WRITES = ("set_registered_model_alias", "set_registered_model_tag", "set_model_version_tag")


class Killed(BaseException):
    """What a command meets that does nothing more."""


def killed_at(call, tracker, act, monkeypatch):
    """Whether a command that is killed before this one of its writes to MLflow has so many."""
    writes = count()

    def unless_killed(write):
        def given(*words, **named):
            if next(writes) == call:
                raise Killed
            return write(*words, **named)

        return given

    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(tracker.client, name, unless_killed(getattr(tracker.client, name)))
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("name", ACTS)
def test_killed_before_any_of_its_writes_and_called_again_a_command_comes_to_what_it_would_have(
    tracker, monkeypatch, name
):
    found = []
    for call in count():
        versions = made_versions(tracker)
        for version in versions[1:4]:
            promote(tracker, version, "by hand")
        was_killed = killed_at(call, tracker, lambda each=versions: ACTS[name](tracker, each), monkeypatch)
        if was_killed:
            ACTS[name](tracker, versions)
        found.append((champion(tracker, versions), told(tracker, versions)))
        if not was_killed:
            break

    assert len(found) > 4
    assert all(each == found[-1] for each in found)
    assert len(found[0][1]) == 4


@pytest.mark.parametrize("call", range(5))
def test_what_a_killed_rollback_began_is_finished_by_a_promotion_which_can_be_undone(
    tracker, versions, monkeypatch, call
):
    for version in versions[1:3]:
        promote(tracker, version, "by hand")
    killed_at(call, tracker, lambda: ACTS["rollback"](tracker, versions), monkeypatch)
    promote(tracker, versions[4], "sharper")
    begun = [("1", "2", ROLLBACK), ("4", "1", "promote")] if call else [("4", "2", "promote")]

    assert told(tracker, versions)[2:] == begun
    assert rollback(tracker, versions[1].name, "").version == ("1" if call else "2")


@pytest.mark.parametrize("call", range(1, 5))
def test_what_was_begun_before_somebody_else_moved_the_alias_is_left_and_that_is_said(
    tracker, versions, monkeypatch, call, capsys
):
    for version in versions[1:3]:
        promote(tracker, version, "by hand")
    killed_at(call, tracker, lambda: ACTS["rollback"](tracker, versions), monkeypatch)
    tracker.client.set_registered_model_alias(versions[1].name, CHAMPION, "3")
    back = [rollback(tracker, versions[1].name, "").version for _ in range(2)]

    assert "was begun when version 2 was champion, and version 3 is now: it is left" in capsys.readouterr().err
    assert back == ["2", "1"]
    assert champion(tracker, versions) == 1


def test_what_was_begun_with_a_version_that_was_deleted_is_left(tracker, versions, monkeypatch):
    for version in versions[1:3]:
        promote(tracker, version, "by hand")
    killed_at(1, tracker, lambda: promote(tracker, versions[4], "sharper"), monkeypatch)
    tracker.client.delete_model_version(versions[1].name, "4")

    assert rollback(tracker, versions[1].name, "").version == "1"


def test_rollbacks_go_back_one_by_one_and_end_at_the_first(tracker, versions):
    name = versions[1].name
    for version in versions[1:4]:
        promote(tracker, version, "by hand")
    first = rollback(tracker, name, "blurred")
    second = rollback(tracker, name, "blurred, too")

    assert [first.version, second.version] == ["2", "1"]
    assert champion(tracker, versions) == 1
    assert [event.why for event in history(tracker, name)][-2:] == ["blurred", "blurred, too"]
    with pytest.raises(ValueError, match=f"there is no champion of {name} before version 1 to roll back to"):
        rollback(tracker, name, "")
    promote(tracker, versions[4], "mended")
    assert rollback(tracker, name, "").version == "1"


def test_promoting_the_champion_changes_nothing(tracker, versions):
    for _ in range(2):
        promote(tracker, versions[1], "by hand")

    assert len(told(tracker, versions)) == 1


def test_a_rollback_to_what_was_deleted_is_refused_in_a_line(tracker, versions):
    name = versions[1].name
    for version in versions[1:3]:
        promote(tracker, version, "by hand")
    tracker.client.delete_model_version(name, "1")

    with pytest.raises(ValueError, match=f"version 1 of {name}, the champion before version 2, was deleted; make"):
        rollback(tracker, name, "")
    assert champion(tracker, versions) == 2


def test_a_rollback_without_a_champion_or_a_model_is_refused_in_a_line(tracker, versions):
    with pytest.raises(ValueError, match="must have a champion to roll back, got none; make one: ddpm promote"):
        rollback(tracker, versions[1].name, "")
    with pytest.raises(ValueError, match=r"there is no model cats in .*; there are: "):
        history(tracker, "cats")


def test_what_a_rollback_would_lead_to_is_known_beforehand(tracker, versions):
    name, before = versions[1].name, []
    for version in versions[1:4]:
        before.append(fallback(tracker, name))
        promote(tracker, version, "by hand")

    assert before == ["", "", f"models:/{name}/1"]
    assert fallback(tracker, name) == rollback(tracker, name, "").uri


def test_what_a_rollback_would_lead_to_is_known_after_one_that_was_killed(tracker, versions, monkeypatch):
    for version in versions[1:4]:
        promote(tracker, version, "by hand")
    killed_at(4, tracker, lambda: ACTS["rollback"](tracker, versions), monkeypatch)

    assert champion(tracker, versions) == 2
    assert fallback(tracker, versions[1].name) == f"models:/{versions[1].name}/1"
