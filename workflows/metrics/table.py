"""The metrics of a sample run as rows for people: what each is called, its interval, and how to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = {
    "thumbnails": "In pixels, of 8×8 thumbnails",
    "dataset": "In features of a small network that was trained on this data set",
    "inception": "In features of Inception-v3",
}
SHARES = ("precision", "recall", "label_agreement", "nearest_label_agreement")
"""between 0 and 1: shown in percent"""
OF_A_KIND = {
    "frechet": ("Fréchet distance", "how far the samples as a whole are from the data; lower is better"),
    "kernel": ("Kernel distance", "the same question, asked in another way (KID); 0 would be the data itself"),
    "precision": ("Precision", "how many samples are among the real pictures; higher is better"),
    "recall": ("Recall", "how much of what is real the samples reach; higher is better"),
    "label_agreement": ("Taken for the right class", "by that network; higher is better"),
    "inception_score": ("Inception Score", "sharp and varied, as a classifier sees it; higher is better"),
}
OF_ITSELF = {
    "nearest_label_agreement": (
        "Right class",
        "how often the nearest training picture is of the class that was asked for; higher is better",
    ),
    "nearest_distance_ratio": (
        "Relative distance to the nearest training picture",
        "the distance below over that of held-out real pictures; near 0 would be copies, near 1 is as new as those are",
    ),
    "nearest_distance": (
        "Distance to the nearest training picture",
        "the median; Euclidean, of all pixels, which go from 0 to 1",
    ),
    "bits_per_dim": (
        "Bits per dimension",
        "what the model needs to write a pixel of held-out pictures down; lower is better",
    ),
}
ENDS = ("low", "high", "error", "held_out", "worst")
"""of what belongs to a metric: its interval, its standard error, what real pictures get, the worst class"""
NOT_OF_QUALITY = ("n", "images_per_s")


@dataclass(frozen=True)
class MetricRow:
    """A metric for people."""

    name: str
    value: str
    interval: str
    num: str
    """of how many pictures"""
    meaning: str


def metric_groups(metrics: dict[str, float]) -> dict[str, list[MetricRow]]:
    """Rows by heading: those of each kind of features, then the others; what nobody explained has a plain row.

    `n`, how many samples there are, is none of them: it stands beside each that says nothing else.
    """
    left = {name: value for name, value in metrics.items() if name not in NOT_OF_QUALITY}
    num = metrics.get("n", math.nan)
    groups = {heading: _rows_of_kind(kind, left, num) for kind, heading in KINDS.items()}
    others = [_row(name, *said, left, num) for name, said in OF_ITSELF.items() if name in left]
    plain = [MetricRow(name, _value(name, value), "", _count(num), "") for name, value in sorted(left.items())]
    return {heading: rows for heading, rows in {"Sample by sample": others, **groups, "Others": plain}.items() if rows}


def in_figures(value: float) -> str:
    """Three figures that count, and the whole of what is before the point."""
    return f"{value:,.1f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"


def _rows_of_kind(kind: str, left: dict[str, float], num: float) -> list[MetricRow]:
    """Takes what it shows out of `left`."""
    names = {f"{family}_{kind}": said for family, said in OF_A_KIND.items()}
    return [_row(name, *said, left, num) for name, said in names.items() if name in left]


def _row(name: str, title: str, meaning: str, left: dict[str, float], num: float) -> MetricRow:
    """A metric with all that belongs to it, which is taken out of `left`."""
    value, num = _value(name, left.pop(name)), left.pop(f"{name}_n", num)
    ends = {end: _value(name, left.pop(f"{name}_{end}")) for end in ENDS if f"{name}_{end}" in left}
    interval = f"{ends['low']} – {ends['high']}" if "low" in ends and "high" in ends else ""
    if "error" in ends:
        interval = f"± {ends['error']}"
    if "held_out" in ends:
        meaning = f"{meaning}; that of real pictures kept out of training is {ends['held_out']}"
    if "worst" in ends:
        meaning = f"{meaning}; of the class with the fewest, {ends['worst']}"
    if (among := left.pop(f"{name}_among", None)) is not None:
        meaning = f"{meaning}; {among:,.0f} training pictures were looked through"
    return MetricRow(title, value, interval, _count(num), meaning)


def _count(num: float) -> str:
    return "?" if math.isnan(num) else f"{num:,.0f}"


def _value(name: str, value: float) -> str:
    return f"{value:.1%}" if name.startswith(SHARES) else in_figures(value)
