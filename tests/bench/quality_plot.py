"""What `quality` measured, as tables and as a picture. Rows are dicts, one a number; the distance is in `distance`."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path

    from matplotlib.axes import Axes

PLAIN = "eps linear simple"

Curve = dict[int, float]


def curves(rows: list[dict], data: str, seed: int | None = None) -> dict[str, Curve]:
    """Distance by training step for every recipe: that of one seed, or the mean of all."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        wanted = row["kind"] == "curve" and row["decay"] == "constant" and row["data"] == data
        if wanted and seed in (None, row["seed"]):
            found[row["recipe"]][row["step"]].append(row["distance"])
    return {recipe: {step: mean(d) for step, d in sorted(at.items())} for recipe, at in found.items()}


def ranked(of: dict[str, Curve]) -> list[str]:
    """Recipes from the best to the worst by the distance at the last step that all have been measured at."""
    last = max(set.intersection(*map(set, of.values())))
    return sorted(of, key=lambda recipe: of[recipe][last])


def steps_to_reach(distance: float, curve: Curve) -> float:
    """Where a curve first comes down to a distance, on straight lines between the logarithms of both.

    The first measured step if it is there already; infinity if it never is.
    """
    before: tuple[int, float] | None = None
    for step, value in curve.items():
        if value <= distance:
            if before is None:
                return step
            share = math.log(before[1] / distance) / math.log(before[1] / value)
            return before[0] * (step / before[0]) ** share
        before = step, value
    return math.inf


def headline(rows: list[dict], data: str) -> list[str]:
    """Steps to the plain recipe's last distance, for it and all that were trained with the same seeds."""
    of, seeds = curves(rows, data), {recipe: seeds_of(rows, data, recipe) for recipe in curves(rows, data)}
    last, target = list(of[PLAIN].items())[-1]
    lines = [f"Steps to the distance that the plain recipe reaches in {last}, {target:.3f}:", ""]
    lines += ["| ratio | steps | recipe | ratio by seed |", "|---:|---:|---|---|"]
    for recipe in ranked(of):
        steps = steps_to_reach(target, of[recipe])
        if seeds[recipe] == seeds[PLAIN] and steps < math.inf:
            by_seed = ", ".join(f"{ratio(rows, data, recipe, seed):.2f}" for seed in seeds[recipe])
            lines.append(f"| {last / steps:.2f} | {steps:.0f} | {recipe} | {by_seed} |")
    return [*lines, ""]


def seeds_of(rows: list[dict], data: str, recipe: str) -> list[int]:
    """With which a recipe's curve was taken."""
    mine = [row for row in rows if row["kind"] == "curve" and row["data"] == data and row["recipe"] == recipe]
    return sorted({row["seed"] for row in mine})


def ratio(rows: list[dict], data: str, recipe: str, seed: int) -> float:
    """The headline's, from one seed's own pair of curves: how far it is to be trusted."""
    of = curves(rows, data, seed)
    last, target = list(of[PLAIN].items())[-1]
    return last / steps_to_reach(target, of[recipe])


def recipe_table(rows: list[dict], data: str) -> list[str]:
    """Distance by recipe and step, and at the end of a run whose learning rate falls to 0."""
    of = curves(rows, data)
    steps = list(of[PLAIN])
    lines = ["| recipe | " + " | ".join(f"{step} steps" for step in steps) + " | decayed | seeds |"]
    lines.append("|---|" + "---:|" * (len(steps) + 2))
    for recipe in ranked(of):
        decayed = [
            row["distance"]
            for row in rows
            if row["kind"] == "curve" and row["decay"] == "linear" and (row["data"], row["recipe"]) == (data, recipe)
        ]
        cells = [f"{of[recipe][step]:.3f}" if step in of[recipe] else "" for step in steps]
        cells += [f"{mean(decayed):.3f}" if decayed else "", str(len(seeds_of(rows, data, recipe)))]
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def sampler_table(rows: list[dict], data: str) -> list[str]:
    """Distance by sampler, spacing and number of network evaluations; the best of each column is bold."""
    found = {
        (row["name"], row["spacing"], row["evaluations"]): row["distance"]
        for row in rows
        if row["kind"] == "samplers" and row["data"] == data
    }
    if not found:
        return []
    evaluations = sorted({key[2] for key in found})
    best = {n: min(d for key, d in found.items() if key[2] == n) for n in evaluations}
    lines = ["| sampler | spacing | " + " | ".join(f"{n} evaluations" for n in evaluations) + " |"]
    lines.append("|---|---|" + "---:|" * len(evaluations))
    for sampler, spacing in dict.fromkeys(key[:2] for key in found):
        values = {n: found[sampler, spacing, n] for n in evaluations if (sampler, spacing, n) in found}
        bold = {n: "**" if distance == best[n] else "" for n, distance in values.items()}
        cells = [f"{bold[n]}{values[n]:.3f}{bold[n]}" if n in values else "" for n in evaluations]
        lines.append(f"| {sampler} | {spacing} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def markdown(rows: list[dict], floors: dict[str, dict], machine: str) -> str:
    """The section of RESULTS.md: for each data set the ratio first, then all numbers."""
    lines = [machine, "", "![Distance by training steps and by network evaluations](quality.png)", ""]
    for data, real in floors.items():
        lines += [f"### {data}", "", *headline(rows, data), *recipe_table(rows, data)]
        lines += [
            f"Real pictures get {real['held_out']:.3f} ({real['num_held_out']} that were held out) and "
            f"{real['drawn']:.3f} (as many as the samples, drawn from the {real['num_train']} that were trained on).",
            "",
            *sampler_table(rows, data),
        ]
    return "\n".join(lines)


def plot(rows: list[dict], floors: dict[str, dict], to: Path | BytesIO) -> None:
    """A row of panels a data set: distance by training steps, and by network evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8 * len(floors)), layout="constrained")
    panels = figure.subplots(len(floors), 2, squeeze=False)
    for (left, right), (data, real) in zip(panels, floors.items(), strict=True):
        _draw_recipes(left, curves(rows, data))
        left.set(title=f"{data}: recipes, by 20 evaluations of DDIM", xlabel="training steps")
        _draw_samplers(right, [row for row in rows if row["kind"] == "samplers" and row["data"] == data])
        right.set(title=f"{data}: samplers, on the best recipe's model", xlabel="network evaluations a picture")
        for panel in (left, right):
            panel.axhline(real["drawn"], color="grey", linestyle="--", label="real pictures")
            panel.set(yscale="log", ylabel="Fréchet distance (8x8)")
            panel.legend(fontsize=7, loc="upper right")
            panel.grid(alpha=0.3, which="both")
    figure.savefig(to, dpi=110)


def _draw_recipes(panel: Axes, of: dict[str, Curve]) -> None:
    for number, recipe in enumerate(ranked(of)):
        style = {"linestyle": "-" if number < 10 else "--"}  # matplotlib has ten colours
        style |= {"color": "black", "linewidth": 2.5} if recipe == PLAIN else {}
        panel.plot(list(of[recipe]), list(of[recipe].values()), marker="o", markersize=3, label=recipe, **style)
    _label_only(panel, sorted(of[PLAIN]))


def _draw_samplers(panel: Axes, rows: list[dict]) -> None:
    """Colours tell the samplers apart; dots mean leading timesteps."""
    names = sorted({row["name"] for row in rows})
    for name in names:
        for spacing, style in (("trailing", "-"), ("leading", ":")):
            mine = [row for row in rows if (row["name"], row["spacing"]) == (name, spacing)]
            line = sorted((row["evaluations"], row["distance"]) for row in mine)
            look = {"color": f"C{names.index(name)}", "marker": "o", "markersize": 3, "label": f"{name}, {spacing}"}
            if line:
                panel.plot([at for at, _ in line], [distance for _, distance in line], style, **look)
    _label_only(panel, sorted({row["evaluations"] for row in rows}))


def _label_only(panel: Axes, places: list[int]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(places, [str(place) for place in places])
    panel.set_xticks([], minor=True)
