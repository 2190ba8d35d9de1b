import pytest

from workflows.promotion import decide
from workflows.tracking import ModelVersion


def version(number, digest="d1", measured=None):
    tags = {"ddpm.dataset_digest": digest}
    return ModelVersion(
        "m", str(number), "run", tags if measured is None else {**tags, "ddpm.frechet_thumbnails": measured}, "m-1"
    )


@pytest.mark.parametrize(
    ("measured", "champion", "promoted", "why"),
    [
        (0.5, None, True, "no champion"),
        (None, None, True, "no champion"),
        (0.4, version(1, measured="0.5"), True, "no worse"),
        (0.5, version(1, measured="0.5"), True, "no worse"),
        (0.6, version(1, measured="0.5"), False, "worse"),
        (float("nan"), version(1, measured="0.5"), False, "worse"),
        (None, version(1, measured="0.5"), False, "to compare"),
        (0.4, version(1), False, "to compare"),
        (0.4, version(1, digest="d2", measured="0.5"), False, "other data"),
    ],
)
def test_a_candidate_becomes_champion_only_where_it_is_measured_to_be_no_worse(measured, champion, promoted, why):
    decided, reason = decide(version(2), measured, champion)

    assert decided is promoted
    assert why in reason
