"""`ddpm report` on the finished run: what it says, and how it looks in a browser, also within MLflow's own pages."""

import io
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from mlflow_servers import Interface
from PIL import Image

from diffusion.data.png import encode_png
from workflows.pages.curves import Curve
from workflows.pages.page import Picture, Report, page
from workflows.report import run
from workflows.storage import Environment

pytestmark = pytest.mark.ray

PATIENCE_MS = 120_000  # for MLflow's pages on a busy machine; on an idle one they take seconds
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LONG = "an_endless_name_" * 20


@pytest.fixture(scope="module")
def report(ddpm, whole, storage):
    """Of the run: what the command said, and the page."""
    done = ddpm("report", whole["sample_run"], "--storage", str(storage), "--json")
    said = json.loads(done.stdout)
    return said, Path(said["report"]).read_text()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; gone when this module's tests are done, for its event loop is in the way of others."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium here")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright here")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a page at a size, in the light or the dark; the page, and the addresses that it asked for."""
    contexts = []

    def open_(uri, size=DESK, scheme="light"):
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        shown, asked = contexts[-1].new_page(), []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(uri)
        return shown, asked

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A page with every section, and names that have no place to break."""
    pixels, file = np.arange(40 * 30, dtype=np.uint8).reshape(30, 40, 1), io.BytesIO()
    frames = [Image.new("L", (800, 40), shade) for shade in (0, 99)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    picture = Picture(encode_png(pixels), "a picture", (LONG, LONG), LONG)
    made = Report(
        model=f"models:/{LONG}/1",
        run_id=LONG,
        made=LONG,
        data=picture,
        data_words=LONG,
        forward=picture,
        losses=[Curve(LONG, f"t{i}", [(step, 1e6 / (step + i)) for step in range(1, 50)]) for i in range(5)],
        reverse=Picture(file.getvalue(), "an animation"),
        strip=picture,
        samples=picture,
        metrics={"n": 5e7, "frechet_thumbnails": 1e-9, "nearest_distance_ratio": 1e9, LONG: 1e300},
        neighbours=picture,
        chain=[(LONG, LONG)] * 4,
        tree=[LONG],
        settings={"a": {LONG: LONG}, "b": {f"{i}{LONG}": LONG for i in range(30)}},
        commands=[(LONG, LONG)],
    )
    path = tmp_path_factory.mktemp("crowded") / "report.html"
    path.write_text(page(made))
    return path.as_uri()


def test_the_page_is_a_file_and_an_artifact_of_the_run(report, whole, client, storage, tmp_path):
    said, html = report

    assert said["run"] == whole["sample_run"]
    assert said["report"] == f"{storage}/reports/{whole['sample_run']}.html"
    assert Path(client.download_artifacts(whole["sample_run"], "report.html", str(tmp_path))).read_text() == html


def test_the_page_tells_of_this_very_run_from_its_data_to_its_samples(report, whole, client):
    text = unescape(re.sub(r"<[^>]*>", " ", report[1]))
    training = client.get_model_version("smoke", whole["model"].rpartition("/")[2]).run_id

    assert all(id_ in text for id_ in (whole["digest"], training, whole["model"], whole["sample_run"]))
    assert f"sample {whole['sample_run']}  FINISHED, num 40, seed 0" in text
    assert f"ddpm pull samples {whole['sample_run']} ./samples --storage" in text
    assert "60 of the 1,6" in text
    assert "40 of the 40 samples" in text
    assert f"{whole['metrics']['frechet_thumbnails']:.3g}" in text


def test_the_curves_are_those_of_the_training(report, client, whole):
    training = client.get_model_version("smoke", whole["model"].rpartition("/")[2]).run_id
    steps = sorted({point.step for point in client.get_metric_history(training, "loss")})
    paths = re.findall(r'class="curve curve-\d"><title>(.*?)</title><path d="(.*?)"', report[1])

    assert len(paths) == 2 * 5  # for wide screens, and for narrow ones
    assert [len(re.findall("[ML]", path)) for title, path in paths if title == "all times"] == [len(steps)] * 2


def test_the_newest_samples_of_a_model_are_found_by_its_name_and_the_file_can_be_named(ddpm, whole, storage, tmp_path):
    done = ddpm("report", "smoke", "--storage", str(storage), "--out", str(tmp_path / "new" / "page.html"))

    assert "report.html" in done.stderr
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0" * 32, "run must be the id of a run in sqlite"),
        ("TRAINING", "run must be a sample run to report on; the stage of .* is train"),
        ("nobody", "there are no samples of 'nobody' in .*; draw some: ddpm sample --name nobody"),
    ],
)
def test_what_cannot_be_reported_on_is_refused_in_a_line(name, said, whole, client, storage):
    version = client.get_model_version("smoke", whole["model"].rpartition("/")[2])
    with pytest.raises(ValueError, match=said) as refused:
        run(Environment(storage=str(storage)), name.replace("TRAINING", version.run_id))

    assert "\n" not in str(refused.value)


def test_where_nothing_is_tracked_there_is_nothing_to_report_on(tmp_path):
    with pytest.raises(ValueError, match="there are no samples of 'digits': nothing has been tracked"):
        run(Environment(storage=str(tmp_path)), "digits")


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("which", ["real", "crowded"])
def test_in_a_browser_nothing_overflows_all_pictures_show_and_nothing_is_asked_for(which, size, show, report, crowded):
    uri = Path(report[0]["report"]).as_uri() if which == "real" else crowded
    shown, asked = show(uri, size)
    widths = shown.evaluate("[...document.images].map(image => image.naturalWidth)")

    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(widths) >= 2
    assert all(widths)
    assert [url for url in asked if not url.startswith("data:")] == [uri]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground_in_the_light_and_in_the_dark(scheme, show, crowded):
    shown, _ = show(crowded, scheme=scheme)
    found = shown.evaluate(
        """[...document.querySelectorAll('p, th, td, figcaption, pre, a, .chart text, li, span, strong, summary')]
        .filter(e => e.checkVisibility()).map(e => [getComputedStyle(e), e]).map(([s, e]) =>
        [e.closest('.chart') ? s.fill : s.color, getComputedStyle(document.body).backgroundColor])"""
    )
    contrasts = [contrast(*(tuple(map(int, re.findall(r"\d+", colour)[:3])) for colour in pair)) for pair in found]

    assert len(contrasts) > 50
    assert min(contrasts) > 3  # WCAG 2: of large letters and of what is drawn; small ones 4.5
    assert sorted(contrasts)[len(contrasts) // 10] > 4.5


def contrast(one, other):
    """WCAG 2's contrast ratio of two sRGB colours."""
    low, high = sorted(luminance(np.array(colour) / 255) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.chaos  # a minute
def test_mlflows_own_pages_show_the_grid_and_the_report(show, report, whole, client, storage):
    run = client.get_run(whole["sample_run"]).info
    server = Interface(storage)
    try:
        artifacts = f"{server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts"
        shown, _ = show(f"{artifacts}/grid.png")
        grid = shown.locator("img[alt='grid.png']")
        grid.wait_for()
        with Image.open(whole["grid"]) as expected:
            assert grid.evaluate("image => image.decode().then(() => image.naturalWidth)") == expected.width

        shown, _ = show(f"{artifacts}/report.html")
        inside = shown.locator("iframe").content_frame
        inside.locator("h1").wait_for()
        assert inside.locator("h1").inner_text() == "smoke, version 1"
        assert inside.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    finally:
        server.stop()
