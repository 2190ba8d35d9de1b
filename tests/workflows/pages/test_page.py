"""The report as a page: what there is, in its order; what there is not, in a line; and nothing of data as markup."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffusion.data.png import encode_png
from workflows.metrics.table import metric_groups
from workflows.pages.curves import Curve
from workflows.pages.page import Picture, Report, page
from workflows.pages.sheet import columns_by_class

NASTY = "<script>alert('&')</script>\"'"
PIXELS = np.zeros((4, 6, 1), np.uint8)


def webp():
    file = io.BytesIO()
    frames = [Image.new("L", (6, 4), shade) for shade in (0, 255)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


PICTURE = Picture(encode_png(PIXELS), "a picture")
FULL = Report(
    model="models:/cats/3",
    run_id="f" * 32,
    made="10 pictures.",
    data=Picture(encode_png(PIXELS), "data", ("cat", "dog"), "2 of 10."),
    data_words="They are small.",
    forward=PICTURE,
    losses=[Curve("all times", "all", [(1, 1.0), (2, 0.5)])],
    reverse=Picture(webp(), "animation"),
    strip=PICTURE,
    samples=PICTURE,
    metrics={"n": 500.0, "frechet_inception": 12.5, "frechet_inception_low": 11.0, "frechet_inception_high": 14.0},
    neighbours=PICTURE,
    chain=[("Data", "0" * 32)],
    tree=["data 000", "  train 111"],
    settings={"Drawing": {"steps": "10"}},
    commands=[("These samples", "ddpm pull samples x ./samples")],
)
BARE = Report(model="models:/cats/3", run_id="f" * 32, made="10 pictures.", data_words="It cannot be read: gone.")


class Balanced(HTMLParser):
    """Fails where tags do not close in the order in which they opened."""

    EMPTY = ("meta", "img", "line", "circle", "path")

    def __init__(self, html):
        super().__init__()
        self.open = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [FULL, BARE, replace(FULL, losses=[]), replace(FULL, reverse=None)])
def test_the_page_is_well_formed(report):
    Balanced(page(report))


def test_the_sections_come_in_the_order_in_which_the_story_is_told():
    sections = re.findall(r'<section id="(\w+)"', page(FULL))

    assert sections == [
        *("data", "forward", "training", "reverse", "samples"),
        *("metrics", "neighbours", "lineage", "settings", "pull"),
    ]


def test_every_link_leads_to_a_section():
    html = page(FULL)

    assert re.findall(r'href="#(\w+)"', html) == re.findall(r'<section id="(\w+)"', html)


def test_what_there_is_not_is_said_in_a_line_and_has_no_picture():
    html = page(BARE)

    assert "<img" not in html
    assert html.count('class="none"') == 7
    assert "It cannot be read: gone." in html
    assert 'id="pull"' not in html


def test_pictures_are_within_the_page_and_have_a_text_in_their_place():
    images = re.findall(r"<img [^>]*>", page(FULL))

    assert len(images) == 6
    assert all(re.search(r'src="data:image/(png|webp);base64,[\w+/=]+"', image) for image in images)
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert 'src="data:image/webp' in images[2]


def test_a_picture_is_enlarged_by_whole_factors_alone():
    assert 'style="width:756px"' in page(FULL)  # 126 times 6


def test_the_page_asks_for_nothing_and_runs_nothing():
    html = page(FULL)

    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "report",
    [
        replace(FULL, model=f"models:/{NASTY}/1"),
        replace(FULL, run_id=NASTY),
        replace(FULL, made=NASTY),
        replace(FULL, data=Picture(PICTURE.data, NASTY, (NASTY, "b"), NASTY)),
        replace(FULL, data_words=NASTY),
        replace(BARE, data_words=NASTY),
        replace(FULL, losses=[Curve(NASTY, NASTY, [(1, 1.0)])]),
        replace(FULL, metrics={NASTY: 1.0}),
        replace(FULL, chain=[(NASTY, NASTY)]),
        replace(FULL, tree=[NASTY]),
        replace(FULL, settings={NASTY: {NASTY: NASTY}}),
        replace(FULL, commands=[(NASTY, NASTY)]),
    ],
)
def test_what_comes_from_data_is_no_markup_wherever_it_stands(report):
    html = page(report)

    Balanced(html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;&quot;&#x27;" in html


def test_a_metric_stands_beside_its_interval_and_how_many_samples_it_is_of():
    (row,) = re.findall(r"<tr><th scope=\"row\">Fréchet distance.*?</tr>", page(FULL))

    assert re.findall(r'"number \w+">(.*?)<', row) == ["12.5", "11 – 14", "500"]


def test_metrics_are_grouped_by_their_features_and_what_nobody_knows_comes_last_as_it_is():
    groups = metric_groups({
        "n": 10.0,
        "images_per_s": 3.0,
        "zzz": 1.25,
        "kernel_dataset": 0.01,
        "kernel_dataset_error": 0.002,
        "frechet_thumbnails": 0.5,
        "frechet_thumbnails_held_out": 0.25,
        "precision_thumbnails": 0.5,
        "nearest_label_agreement": 0.987,
    })  # fmt: skip
    rows = [(row.name, row.value, row.interval) for group in groups.values() for row in group]

    assert rows == [
        ("Right class", "98.7%", ""),
        ("Fréchet distance", "0.5", ""),
        ("Precision", "50.0%", ""),
        ("Kernel distance", "0.01", "± 0.002"),
        ("zzz", "1.25", ""),
    ]
    assert "0.25" in groups["In pixels, of 8×8 thumbnails"][0].meaning


def test_a_value_that_is_not_finite_is_shown_as_it_is():
    ((row,),) = metric_groups({"loss": float("nan")}).values()

    assert row.value == "nan"


def test_long_tables_are_folded_away():
    html = page(replace(FULL, settings={"all": {str(i): "x" for i in range(50)}, "few": {"a": "b"}}))

    assert html.index("<h3>few") < html.index("<details><summary>all")


def test_a_few_classes_have_a_column_each_and_gaps_where_one_has_fewer():
    labels = np.array([1, 0, 1, 1, 0, 2])

    columns, heads = columns_by_class(labels, ["a", "b", "c", "d"], num_rows=2)

    assert heads == ("a", "a", "a", "b", "b", "b", "c", "c", "c")  # d has no picture; there is room for three each
    assert columns == [[1], [4], [-1], [0], [2], [3], [5], [-1], [-1]]


@pytest.mark.parametrize(("labels", "num_classes"), [([-1] * 25, 0), ([3] * 25, 10), (range(25), 25)])
def test_pictures_without_classes_of_one_or_of_many_come_in_their_order(labels, num_classes):
    columns, heads = columns_by_class(np.array(labels), [str(i) for i in range(num_classes)], num_rows=2)

    assert heads == ()
    assert [i for row in zip(*columns, strict=True) for i in row] == list(range(20))
