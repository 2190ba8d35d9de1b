"""The metrics of a sample run as lines for people."""

from __future__ import annotations

import re
from contextlib import suppress

BEFORE = (
    "{nearest_label_agreement:.1%} are nearest to a training picture of the label asked for",
    "{nearest_distance_ratio:.2f} times as far from the training pictures as held-out real ones (0: copies)",
)
KINDS = {
    "thumbnails": "8x8 thumbnails",
    "dataset": "features of a net trained on the data",
    "inception": "Inception-v3: FID",
}
OF_KIND = (
    "{frechet_KIND:.4g} Fréchet distance to them (NAME; lower is better); other samples: "
    "{frechet_KIND_low:.4g} to {frechet_KIND_high:.4g}",
    "{frechet_KIND_held_out:.4g} is that of held-out real pictures",
    "{kernel_KIND:.4g} ± {kernel_KIND_error:.2g} kernel distance (NAME)",
    "{precision_KIND:.1%} are among them, {recall_KIND:.1%} of them among the samples (precision, recall)",
    "{label_agreement_KIND:.1%} are taken for the label asked for; of the worst class {label_agreement_KIND_worst:.1%}",
    "{inception_score_KIND:.2f} Inception Score, {inception_score_KIND_low:.2f} to {inception_score_KIND_high:.2f}",
)
AFTER = ("{bits_per_dim:.3f} bits/dim of held-out pictures; others: {bits_per_dim_low:.3f} to {bits_per_dim_high:.3f}",)
FIRST = re.compile(r"\{(\w+)")
"""in a text: the metric that it is about"""


def metric_lines(metrics: dict[str, float]) -> list[str]:
    """What people read of them, without those that are not there; of how many, where that is not `n`."""
    of_kinds = [text.replace("KIND", kind).replace("NAME", name) for kind, name in KINDS.items() for text in OF_KIND]
    lines = []
    for text in (*BEFORE, *of_kinds, *AFTER):
        name, num = FIRST.findall(text)[0], metrics.get("n")
        of = metrics.get(f"{name}_n", num)
        with suppress(KeyError):
            lines.append(text.format(**metrics) + ("" if of == num else f"; n = {of:,.0f}"))
    return lines
