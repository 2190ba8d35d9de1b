"""Whether a candidate takes over: better than the champion by more than chance, and nothing wrong with it.

Metrics are as `judge` names them; those of both are of as many samples with the same seeds, beside the same pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..config import GateConfig

    Metrics = Mapping[str, float]

COPIES, WORST_CLASS = "nearest_distance_ratio", "label_agreement_dataset_worst"


@dataclass(frozen=True)
class Decision:
    """What is to become of a candidate, and all that speaks for it."""

    promoted: bool
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons in a line."""
        return "; ".join(self.reasons)


def decide(candidate: Metrics, champion: Metrics | None, gate: GateConfig, retrained: bool = False) -> Decision:
    """Promote or refuse. Without a champion (None) the guards alone decide; they see what was measured.

    Whether it copies must have been measured if it is to replace a champion, as a copy has the lowest distance of all,
    or if nobody may look at it: `retrained`.
    """
    better, why = (True, "there was no champion") if champion is None else compare(candidate, champion, gate)
    faults = list(guards(candidate, champion or {}, gate))
    if COPIES not in candidate and gate.min_distance_ratio > 0 and (retrained or champion is not None):
        faults.append("copies could not be measured: nothing is held out to tell by")
    if better and not faults:
        return Decision(True, (why,))
    return Decision(False, (*faults, *([] if better else [why])))


def compare(candidate: Metrics, champion: Metrics, gate: GateConfig) -> tuple[bool, str]:
    """Whether the candidate's Fréchet distance is lower by more than noise, and why.

    The noise is that of a difference: the half of the candidate's interval that lies above its value and the half of
    the champion's that lies below, added as squares. A tie stays with the champion.
    """
    name = f"frechet_{gate.measure}"
    for who, metrics in (("candidate", candidate), ("champion", champion)):
        for end in (name, f"{name}_low", f"{name}_high"):
            if not math.isfinite(metrics.get(end, math.nan)):
                return False, f"the {who} has no {end} to compare: {metrics.get(end, 'not measured')}"
    ours, theirs = candidate[name], champion[name]
    noise = math.hypot(candidate[f"{name}_high"] - ours, theirs - champion[f"{name}_low"])
    better = theirs - ours > noise
    than = f"{name} {ours:.4g} is {'' if better else 'not '}better than the champion's {theirs:.4g}"
    return better, f"{than} by more than noise, {noise:.2g}"


def guards(candidate: Metrics, champion: Metrics, gate: GateConfig) -> Iterator[str]:
    """What is wrong with the candidate, whatever its distance. A class that the champion has not is not lost by it."""
    if wrong := [f"{name} {value}" for name, value in sorted(candidate.items()) if not math.isfinite(value)]:
        yield f"not finite: {', '.join(wrong)}"
    if (ratio := candidate.get(COPIES, math.inf)) < gate.min_distance_ratio:
        yield f"copies: {COPIES} {ratio:.3g} is below {gate.min_distance_ratio:g}"
    worst, before = (metrics.get(WORST_CLASS, math.inf) for metrics in (candidate, champion))
    if worst < gate.min_class_agreement <= before:
        yield f"a class is lost: {WORST_CLASS} {worst:.3g} is below {gate.min_class_agreement:g}"
