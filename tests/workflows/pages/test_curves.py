"""The chart of the report: every finite value has its place, and nothing else is drawn."""

import math
import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.pages.curves import MAX_POINTS, Curve, line_chart, log_ticks, thinned, ticks

NAN, INF = math.nan, math.inf
VALUES = st.floats(-1e12, 1e12, allow_subnormal=False)


def chart(*series):
    curves = [Curve(f"series {i}", f"s{i}", points) for i, points in enumerate(series)]
    return line_chart(curves, "step", "loss", 400, 300)


def places(svg):
    """Where the lines go, a list for each path."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]
        for path in re.findall(r'<path d="(.*?)"', svg)
    ]


@pytest.mark.parametrize("series", [[], [[]], [[(1, NAN)]], [[(1, INF)], []]])
def test_of_no_finite_value_there_is_no_chart(series):
    assert chart(*series) == ""


def test_a_single_value_is_a_dot():
    svg = chart([(7, 0.5)])

    assert svg.count("<circle") == 1
    assert ">0.5<" in svg


def test_a_value_that_is_not_finite_is_a_gap():
    (path,) = re.findall(r'<path d="(.*?)"', chart([(1, 1.0), (2, 2.0), (3, NAN), (4, 1.5), (5, 1.0)]))

    assert re.sub(r"[^ML]", "", path) == "MLML"


def test_values_of_several_magnitudes_are_drawn_over_their_logarithms():
    svg = chart([(0, 1.0), (1, 0.1), (2, 0.01)])
    ((_, first), (_, second), (_, third)) = places(svg)[0]

    assert second - first == pytest.approx(third - second, abs=0.2)
    assert "log scale" in svg


def test_the_smallest_of_numbers_has_its_place():
    assert "log scale" in chart([(0, 4.0), (1, sys.float_info.min)])


def test_values_of_one_magnitude_or_below_zero_are_drawn_as_they_are():
    for values in ([1.0, 2.0, 3.0], [-1.0, 10.0, 21.0]):
        svg = chart(list(enumerate(values)))
        ((_, first), (_, second), (_, third)) = places(svg)[0]

        assert second - first == pytest.approx(third - second, abs=0.2)
        assert "log scale" not in svg


@given(st.lists(st.lists(st.tuples(st.integers(0, 10**9), VALUES | st.just(NAN)), max_size=20), max_size=5))
def test_whatever_the_values_the_chart_is_well_formed_and_everything_lies_within_it(series):
    svg = chart(*(sorted(points) for points in series))
    if svg:
        ElementTree.fromstring(svg)

        assert all(0 <= x <= 400 and 0 <= y <= 300 for path in places(svg) for x, y in path)


def test_names_are_escaped():
    svg = line_chart([Curve("<b>&", "<i>", [(0, 1.0), (1, 2.0)])], "<x>", '"y"', 400, 300)

    ElementTree.fromstring(svg)
    assert "&lt;b&gt;&amp;" in svg
    assert "<b>" not in svg


def test_labels_at_the_ends_do_not_cover_each_other():
    svg = chart(*([(0, 1.0), (1, 2.0 + i / 1000)] for i in range(5)))
    heights = sorted(float(y) for y in re.findall(r'class="end curve-\d" x="\d+" y="([\d.]+)"', svg))

    assert min(b - a for a, b in pairwise(heights)) >= 12


def test_many_points_become_means_that_begin_and_end_where_they_did():
    points = [(step, float(step)) for step in range(10_001)]
    few = thinned(points)

    assert len(few) <= MAX_POINTS
    assert few[-1][0] == 10_000
    assert sum(y for _, y in few[:-1]) / (len(few) - 1) == pytest.approx(5000, rel=0.01)
    assert thinned(points[:10]) == points[:10]


def test_a_mean_leaves_out_what_is_not_finite_and_of_nothing_else_is_nan():
    assert thinned([(0, 1.0), (1, NAN), (2, NAN), (3, NAN)], most=2) == [(1, 1.0), (3, pytest.approx(NAN, nan_ok=True))]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9), st.integers(1, 12))
def test_ticks_are_within_and_no_more_than_asked_for_and_one(low, span, about):
    found = ticks(low, low + span, about)

    assert len(found) <= about + 1
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_ticks_are_round():
    assert ticks(0, 600, 6) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(0.9, 2.1, 3) == [1.0, 1.5, 2.0]
    assert log_ticks(0.005, 2) == [0.01, 0.1, 1.0]
    assert log_ticks(0.03, 0.6) == pytest.approx([0.05, 0.1, 0.2, 0.5])
