"""Which version is the champion: the first one is, and a later one if it is measured to be no worse."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .tracking import CHAMPION, DIGEST_TAG, ModelVersion, Tracker, champion_of, set_alias

if TYPE_CHECKING:
    from .tracking import TrackedRun

MEASURE = "frechet_thumbnails"
MEASURED_TAG = f"ddpm.{MEASURE}"


def promote(tracker: Tracker, candidate: ModelVersion, samples: TrackedRun) -> tuple[bool, str]:
    """Make the candidate champion if there is none or it measures no worse; (whether it is champion now, why).

    The measurement is kept in the version's tags. Distances to different data are not compared: then the
    champion stays, and somebody has to look.
    """
    measured = samples.metrics.get(MEASURE)
    tags = {} if measured is None else {MEASURED_TAG: str(measured)}
    champion = champion_of(tracker, candidate.name)
    if champion is not None and champion.version == candidate.version:
        return True, "it already was"
    promoted, reason = decide(candidate, measured, champion)
    if promoted:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        set_alias(tracker, candidate, CHAMPION, {**tags, "ddpm.champion_since": since, "ddpm.champion_why": reason})
    return promoted, reason


def decide(candidate: ModelVersion, measured: float | None, champion: ModelVersion | None) -> tuple[bool, str]:
    """Whether the candidate should take over, and why."""
    if champion is None:
        return True, "there was no champion"
    known = champion.tags.get(MEASURED_TAG)
    if measured is None or known is None:
        return False, f"no {MEASURE} to compare with version {champion.version}"
    if candidate.tags[DIGEST_TAG] != champion.tags[DIGEST_TAG]:
        return False, f"version {champion.version} was trained on other data"
    if measured <= float(known):
        return True, f"{MEASURE} {measured:.4f} is no worse than {float(known):.4f} of version {champion.version}"
    return False, f"{MEASURE} {measured:.4f} is worse than {float(known):.4f} of version {champion.version}"
