"""The gate, over a table of what may be measured."""

import math
import re

import pytest

from workflows.champions.gate import decide
from workflows.config import GateConfig

NAN, INF = math.nan, math.inf
NAME = "frechet_thumbnails"


RATIO = "nearest_distance_ratio"


def measured(value, noise=0.1, **others):
    """Metrics with this distance and half that interval to each side, of pictures that are no copies."""
    return {"n": 40.0, NAME: value, f"{NAME}_low": value - noise, f"{NAME}_high": value + noise, RATIO: 1.0, **others}


def without(metrics, name):
    return {key: value for key, value in metrics.items() if key != name}


COPIES = {RATIO: 0.2}
UNKNOWN = "copies could not be measured: nothing is held out"
LOST = {"label_agreement_dataset_worst": 0.05}
HAS = {"label_agreement_dataset_worst": 0.9}


@pytest.mark.parametrize(
    ("candidate", "champion", "promoted", "reason"),
    [
        (measured(1.0), measured(2.0), True, "1 is better than the champion's 2 by more than noise, 0.14"),
        (measured(1.8), measured(2.0), True, "better"),
        (measured(1.9), measured(2.0), False, "not better than the champion's 2 by more than noise"),
        (measured(2.0), measured(2.0), False, "not better"),
        (measured(2.0, noise=0), measured(2.0, noise=0), False, "not better"),
        (measured(1.999, noise=0), measured(2.0, noise=0), True, "better"),
        (measured(3.0), measured(2.0), False, "not better"),
        (measured(NAN), measured(2.0), False, f"the candidate has no {NAME} to compare: nan"),
        (measured(INF), measured(2.0), False, f"the candidate has no {NAME} to compare: inf"),
        (measured(1.0), measured(NAN), False, f"the champion has no {NAME} to compare: nan"),
        (measured(1.0), measured(-INF), False, f"the champion has no {NAME} to compare: -inf"),
        (measured(1.0), {}, False, f"the champion has no {NAME} to compare: not measured"),
        ({}, measured(2.0), False, f"the candidate has no {NAME} to compare: not measured"),
        (without(measured(1.0), f"{NAME}_high"), measured(2.0), False, f"no {NAME}_high to compare"),
        (measured(1.0), without(measured(2.0), f"{NAME}_low"), False, f"no {NAME}_low to compare"),
        (measured(1.0, kernel_thumbnails=NAN), measured(2.0), False, "not finite: kernel_thumbnails nan"),
        (measured(1.0), measured(2.0, kernel_thumbnails=NAN), True, "better"),
        (measured(1.0, **COPIES), measured(2.0), False, "copies: nearest_distance_ratio 0.2 is below 0.5"),
        (measured(1.0, nearest_distance_ratio=0.5), measured(2.0), True, "better"),
        (without(measured(1.0), RATIO), measured(2.0), False, UNKNOWN),
        (without(measured(1.0), RATIO), without(measured(2.0), RATIO), False, UNKNOWN),
        (measured(1.0), without(measured(2.0), RATIO), True, "better"),
        (measured(1.0, **LOST), measured(2.0, **HAS), False, "a class is lost: .* 0.05 is below 0.1"),
        (measured(1.0, **LOST), measured(2.0), False, "a class is lost"),
        (measured(1.0, **LOST), measured(2.0, **LOST), True, "better"),
        (measured(1.0, **HAS), measured(2.0, **LOST), True, "better"),
        (measured(1.0), None, True, "there was no champion"),
        ({}, None, True, "there was no champion"),
        (without(measured(1.0), RATIO), None, True, "there was no champion"),
        (measured(NAN), None, False, f"not finite: {NAME} nan"),
        (measured(1.0, **COPIES), None, False, "copies"),
        (measured(1.0, **LOST), None, False, "a class is lost"),
    ],
)
def test_a_candidate_is_promoted_if_it_is_better_by_more_than_noise_and_nothing_is_wrong_with_it(
    candidate, champion, promoted, reason
):
    decision = decide(candidate, champion, GateConfig())

    assert decision.promoted is promoted
    assert re.search(reason, decision.why)


def test_a_retraining_takes_no_first_champion_either_of_which_nothing_says_whether_it_copies():
    candidate = without(measured(1.0), RATIO)

    assert decide(candidate, None, GateConfig(), retrained=True).reasons == (f"{UNKNOWN} to tell by",)
    assert decide(measured(1.0), None, GateConfig(), retrained=True).promoted


@pytest.mark.parametrize("retrained", [True, False])
def test_a_guard_that_lets_every_copy_pass_needs_nothing_measured(retrained):
    candidate, gate = without(measured(1.0), RATIO), GateConfig(min_distance_ratio=0)

    assert decide(candidate, measured(2.0), gate, retrained).promoted
    assert decide(candidate, None, gate, retrained).promoted


def test_a_refusal_has_all_its_reasons():
    decision = decide(measured(3.0, **COPIES, **LOST, kernel_thumbnails=NAN), measured(2.0, **HAS), GateConfig())

    assert [reason.split(":")[0].split(" ")[0] for reason in decision.reasons] == ["not", "copies", "a", NAME]


def test_a_promotion_says_why_and_nothing_against():
    assert len(decide(measured(1.0, **HAS), measured(2.0), GateConfig()).reasons) == 1


def test_thresholds_and_measure_are_settings():
    gate = GateConfig(measure="dataset", min_distance_ratio=0.1, min_class_agreement=0.01)
    ours, theirs = (
        {f"frechet_dataset{end}": value for end in ("", "_low", "_high")} | measured(3 - value) for value in (1.0, 2.0)
    )

    assert decide(ours | COPIES | LOST, theirs, gate).promoted
    assert not decide(ours, theirs, GateConfig()).promoted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "pixels"}, "measure must be one of thumbnails, dataset, inception, got 'pixels'"),
        ({"min_distance_ratio": -1}, "min_distance_ratio must be at least 0 and finite, got -1"),
        ({"min_distance_ratio": NAN}, "min_distance_ratio must be at least 0 and finite, got nan"),
        ({"min_class_agreement": 1.1}, r"min_class_agreement must lie in \[0, 1\], got 1.1"),
    ],
)
def test_impossible_thresholds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GateConfig(**settings)
