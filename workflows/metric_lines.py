"""The metrics of a sample run as lines for people."""

from __future__ import annotations

from contextlib import suppress

METRICS = (
    "{nearest_label_agreement:.1%} are nearest to a training picture of the label asked for",
    "{nearest_distance_ratio:.2f} times as far from the training pictures as held-out real ones (0: copies)",
    "{frechet_thumbnails:.3f} Fréchet distance to them (8x8 thumbnails; lower is better); other samples: "
    "{frechet_thumbnails_low:.3f} to {frechet_thumbnails_high:.3f}",
    "{frechet_thumbnails_held_out:.3f} is that of held-out real pictures",
    "{precision_thumbnails:.1%} are among them, {recall_thumbnails:.1%} of them among the samples (precision, recall)",
)
"""what people read of a sample run's metrics, a line each, where it has them"""


def metric_lines(metrics: dict[str, float]) -> list[str]:
    """What people read of them, without those that are not there."""
    lines = []
    for text in METRICS:
        with suppress(KeyError):
            lines.append(text.format(**metrics))
    return lines
