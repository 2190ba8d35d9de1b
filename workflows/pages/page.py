"""What there is to show of a sample run, as one HTML page that needs nothing beside it: no script, no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from ..metrics.table import in_figures, metric_groups
from . import words as words
from .curves import Curve, line_chart
from .style import STYLE

WIDTH = 760
"""px that a picture is enlarged to at most, by whole factors"""
CHARTS = (("wide", 800, 400), ("narrow", 340, 320))
"""of which the page shows the one that fits: letters in a picture that is scaled are too small, or too large"""
OPEN_ROWS = 16
"""of a table of settings that is not folded away"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FORMATS = {"PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A picture file (PNG, WebP or GIF), and what is to be read above its columns."""

    data: bytes
    alt: str
    heads: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows; where something is missing (None, or empty), the page says so or leaves it out."""

    model: str
    """models:/NAME/VERSION"""
    run_id: str
    made: str
    """what was drawn by what, a sentence"""
    data: Picture | None = None
    data_words: str = ""
    """what the data is, or why there is none to be seen"""
    forward: Picture | None = None
    losses: list[Curve] = field(default_factory=list)
    reverse: Picture | None = None
    strip: Picture | None = None
    samples: Picture | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """as logged"""
    neighbours: Picture | None = None
    chain: list[tuple[str, str]] = field(default_factory=list)
    """what, and its id, from the data to the samples"""
    tree: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    """a table of names and values for each title"""
    commands: list[tuple[str, str]] = field(default_factory=list)
    """what it is for, and how it is typed"""


def page(report: Report) -> str:
    """The whole page. What comes from data, names, tags or settings is escaped."""
    shown = [(name, title, body) for name, title, body in _sections(report) if body]
    title = escape(f"{report.model.removeprefix('models:/').replace('/', ', version ')}")
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{inside}</section>' for name, heading, inside in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}: samples</title><style>{STYLE}</style></head><body><header>"
        f'<p class="kicker">A denoising diffusion model and what it draws</p><h1>{title}</h1>'
        f'<p class="lead">{escape(report.made)}</p>{_facts(report.metrics)}<nav aria-label="Contents">{links}</nav>'
        f"</header><main>{body}</main><footer>Sample run <code>{escape(report.run_id)}</code> of "
        f"<code>{escape(report.model)}</code>. This page is one file and asks the network for nothing.</footer>"
        "</body></html>\n"
    )


def _sections(report: Report) -> list[tuple[str, str, str]]:
    """Anchor, title and content of every section in order; one without content is not shown."""
    data = f"{words.DATA} {escape(report.data_words)}" if report.data else ""
    return [
        ("data", "What it learned from", _told(data, figure(report.data), escape(report.data_words))),
        ("forward", "Forward: a picture drowns in noise", _told(words.FORWARD, figure(report.forward), "forward")),
        ("training", "Training", _told(words.TRAINING, _charts(report.losses), "training")),
        (
            "reverse",
            "Reverse: a picture comes out of noise",
            _told(words.REVERSE, figure(report.reverse) + figure(report.strip), "reverse"),
        ),
        ("samples", "What it draws", _told(words.SAMPLES, figure(report.samples), "samples")),
        ("metrics", "How good they are", _told(words.METRICS, _metrics(report.metrics), "metrics")),
        ("neighbours", "Are they copies?", _told(words.NEIGHBOURS, figure(report.neighbours), "neighbours")),
        ("lineage", "Where they came from", _told(words.LINEAGE, _lineage(report))),
        ("settings", "Settings and timing", _told(words.SETTINGS, _settings(report.settings))),
        ("pull", "Getting them", _told(words.COMMANDS, _commands(report.commands))),
    ]


def _told(paragraph: str, content: str, missing: str = "") -> str:
    """What a section teaches over what it shows, or the words for there being nothing to show."""
    if content:
        return f"<p>{paragraph}</p>{content}"
    said = words.NONE.get(missing, missing)
    return f'<p class="none">{said}</p>' if said else ""


def _charts(curves: list[Curve]) -> str:
    svgs = [(kind, line_chart(curves, "step", "loss", width, height)) for kind, width, height in CHARTS]
    if not any(svg for _, svg in svgs):
        return ""
    shown = "".join(f'<div class="{kind}">{svg}</div>' for kind, svg in svgs)
    legend = "".join(f'<li class="curve-{i}"><i></i>{escape(curve.name)}</li>' for i, curve in enumerate(curves))
    return f'<figure>{shown}<ul class="legend">{legend}</ul></figure>'


def _metrics(metrics: dict[str, float]) -> str:
    bodies = []
    for heading, rows in metric_groups(metrics).items():
        lines = "".join(
            f'<tr><th scope="row">{escape(row.name)}</th><td class="number value">{escape(row.value)}</td>'
            f'<td class="number interval">{escape(row.interval)}</td><td class="number n">{escape(row.num)}</td>'
            f'<td class="meaning">{escape(row.meaning)}</td></tr>'
            for row in rows
        )
        bodies.append(f'<tbody><tr class="group"><th colspan="5">{escape(heading)}</th></tr>{lines}</tbody>')
    if not bodies:
        return ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Metrics"><table class="metrics"><thead>'
        '<tr><th>metric</th><th class="number">value</th><th class="number">interval</th><th class="number">n</th>'
        f"<th>how to read it</th></tr></thead>{''.join(bodies)}</table></div>"
    )


def _lineage(report: Report) -> str:
    links = "".join(f"<li><strong>{escape(what)}</strong><code>{escape(id_)}</code></li>" for what, id_ in report.chain)
    tree = _block("\n".join(report.tree), "Lineage") if report.tree else ""
    return (f'<ol class="chain">{links}</ol>' if links else "") + tree


def _settings(tables: dict[str, dict[str, str]]) -> str:
    """Short tables side by side, then long ones, which are closed."""
    short, long = [], []
    for title, rows in tables.items():
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows.items()
        )
        table = f'<div class="scroll"><table>{lines}</table></div>'
        if len(rows) > OPEN_ROWS:
            long.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
        elif rows:
            short.append(f"<div><h3>{escape(title)}</h3>{table}</div>")
    return (f'<div class="settings">{"".join(short)}</div>' if short else "") + "".join(long)


def _commands(commands: list[tuple[str, str]]) -> str:
    return "".join(f"<h3>{escape(what)}</h3>{_block(command, what)}" for what, command in commands)


def _facts(metrics: dict[str, float]) -> str:
    """The few numbers to begin with."""
    facts = []
    if "n" in metrics:
        facts.append((f"{metrics['n']:,.0f}", "samples judged"))
    if "nearest_label_agreement" in metrics:
        facts.append((f"{metrics['nearest_label_agreement']:.1%}", "are of the class that was asked for"))
    if "frechet_thumbnails" in metrics:
        real = metrics.get("frechet_thumbnails_held_out")
        beside = "" if real is None else f"; real pictures: {in_figures(real)}"
        facts.append((in_figures(metrics["frechet_thumbnails"]), f"Fréchet distance of thumbnails{beside}"))
    if "nearest_distance_ratio" in metrics:
        ratio = metrics["nearest_distance_ratio"]
        facts.append((f"{ratio:.2f}×", "as far from the training pictures as new real ones are (0: copies)"))
    made = "".join(f"<div><strong>{number}</strong><span>{what}</span></div>" for number, what in facts)
    return f'<div class="facts">{made}</div>' if made else ""


def figure(picture: Picture | None) -> str:
    """A picture within the page, enlarged by a whole factor where there is room, its columns headed; "" for none."""
    if picture is None:
        return ""
    with Image.open(io.BytesIO(picture.data)) as image:
        (width, height), kind = image.size, FORMATS[image.format or ""]
    shown = width * max(1, WIDTH // width)
    heads = "".join(f'<span title="{escape(head)}">{escape(head)}</span>' for head in picture.heads)
    if heads:
        columns = f"grid-template-columns:repeat({len(picture.heads)},minmax(0,1fr))"
        heads = f'<div class="heads" style="{columns}">{heads}</div>'
    source = f"data:{kind};base64,{base64.b64encode(picture.data).decode()}"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure><div class="sheet" style="width:{shown}px">{heads}<img src="{source}" width="{width}" '
        f'height="{height}" alt="{escape(picture.alt)}"></div>{caption}</figure>'
    )


def _block(text: str, label: str) -> str:
    """Text as it is typed, which scrolls in its own box."""
    return f'<div class="scroll"><pre tabindex="0" aria-label="{escape(label)}">{escape(text)}</pre></div>'
