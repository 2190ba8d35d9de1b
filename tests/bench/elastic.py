"""How far a training whose number of workers changes leaves the unbroken one: a picture beside RESULTS.md.

    pytest -m chaos tests/chaos/test_train_troubles.py -k number_of_workers -s    # says where its losses are
    python tests/bench/elastic.py LOSSES.json

The same samples make the same batches; only the order of sums differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from contest import RESULTS, circumstances, table, write_section

BLOCK = 20
"""steps, of which the largest difference is shown"""
LIMIT, LIMIT_STEPS = 1e-4, 300


def differences(losses: dict) -> dict[int, float]:
    """|changing / unbroken - 1| of the loss at every step."""
    return {int(step): abs(losses["changing"][step] / loss - 1) for step, loss in losses["unbroken"].items()}


def draw(off: dict[int, float], workers: dict[int, int], file: Path) -> None:
    """The largest difference of every block of steps, and with how many workers it was trained."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    blocks = range(0, max(off), BLOCK)
    largest = [max(off[step] for step in range(start + 1, start + BLOCK + 1)) for start in blocks]
    axes.semilogy([start + BLOCK / 2 for start in blocks], largest, marker=".", color="tab:blue")
    axes.hlines(LIMIT, 0, LIMIT_STEPS, colors="tab:red", linestyles="dashed", label=f"limit to step {LIMIT_STEPS}")
    begin = 0
    for until, num_workers in workers.items():
        axes.axvline(until, color="lightgray", zorder=0)
        axes.text((begin + until) / 2, 0.02, f"W={num_workers}", transform=axes.get_xaxis_transform(), ha="center")
        begin = until
    axes.set(xlabel="step", ylabel="relative difference of the loss", xlim=(0, max(off)))
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """The picture, and the largest differences as a table."""
    losses = json.loads(Path(sys.argv[1]).read_text())
    off = differences(losses)
    workers = {int(until): number for until, number in losses["workers"].items()}
    draw(off, workers, RESULTS.with_name("elastic.png"))
    hundreds = range(0, max(off), 100)
    rows = [("steps", *(f"{start + 1} to {start + 100}" for start in hundreds))]
    rows += [
        ("largest", *(f"{max(off[step] for step in range(start + 1, start + 101)):.1e}" for start in hundreds)),
    ]
    changes = ", then ".join(f"{number} to about step {until}" for until, number in workers.items())
    write_section(
        "Changing the number of workers",
        f"The loss of a training with other numbers of workers ({changes}), killed in between, beside that of two "
        f"from first to last: relative difference, preset smoke, float32, no dropout.\n\n"
        f"{circumstances(('torch', 'ray'))}\n\n{table(rows)}\n\n![The difference by step](elastic.png)",
    )


if __name__ == "__main__":
    main()
