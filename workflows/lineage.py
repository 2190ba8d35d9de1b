"""`ddpm lineage`: from a data digest to a picture and back, for any one of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from pyarrow import parquet

from .tracking import DIGEST_TAG, Node, Tracker, model_version, tree_of

if TYPE_CHECKING:
    from .storage import Environment

HEX = re.compile("[0-9a-f]{32}")  # a run's id, or a digest


def lineage(environment: Environment, name: str) -> tuple[Node, str]:
    """The tree of all that this came of and all that came of it, from its data down; and its id in the tree.

    `name` is a model (NAME, NAME@alias, NAME/version), a run's id, a data set's digest, or RUN/KEY, a sample. Raises
    ValueError if there is no such thing, or if it has no data yet.
    """
    tracker = Tracker(environment)
    if tracker.is_empty:
        raise ValueError(f"there is no {name}: nothing has been tracked in {tracker.uri} yet")
    head, _, key = name.partition("/") if HEX.match(name) else (name, "", "")
    if not HEX.fullmatch(head):
        model = model_version(tracker, name)
        digest, asked = model.tags[DIGEST_TAG], model.uri
    elif key or tracker.has_run(head):
        run = tracker.run(head)
        digest, asked = run.tags.get(DIGEST_TAG, ""), head
        if not digest:
            raise ValueError(f"run {head} came to no data: it is {run.status}")
    else:
        digest = asked = head
    tree = kin(tree_of(tracker, digest), asked)
    if tree is None:
        raise ValueError(f"{name} is not tied to its data {digest} in {tracker.uri}: it was deleted there")
    if key:
        tree, asked = with_child(tree, head, picture(tracker, head, key)), f"{head}/{key}"
    return tree, asked


def kin(node: Node, asked: str) -> Node | None:
    """What leads to a node of this id, and all that is below it; None if it is not here."""
    if node.id == asked:
        return node
    children = [found for child in node.children if (found := kin(child, asked))]
    return replace(node, children=children) if children else None


def with_child(node: Node, parent: str, child: Node) -> Node:
    """The same tree, with another child of the node with the id `parent`."""
    children = [with_child(old, parent, child) for old in node.children]
    return replace(node, children=[*children, child] if node.id == parent else children)


def picture(tracker: Tracker, run_id: str, key: str) -> Node:
    """One sample of a run, by its key in the shard set. Raises ValueError if the run has none of this key."""
    with TemporaryDirectory() as folder:
        manifest = tracker.download(run_id, "samples/manifest.parquet", Path(folder))
        rows = parquet.read_table(manifest, columns=["key", "label", "source", "sha256"])
    found = rows.filter(pc.equal(rows["key"], key)).to_pylist()
    if not found:
        raise ValueError(f"run {run_id} has no sample {key!r}; its {len(rows)} keys are like {rows['key'][0]}")
    label = "" if found[0]["label"] < 0 else f"label {found[0]['label']}, "
    return Node("picture", f"{run_id}/{key}", f"{label}{found[0]['source']}, sha256 {found[0]['sha256']}")


def lines(node: Node, asked: str, depth: int = 0) -> list[str]:
    """The tree for people, a line a node, an arrow at what was asked for."""
    arrow = "  <--" if node.id == asked else ""
    own = f"{'  ' * depth}{node.kind} {node.id}  {node.detail}".rstrip() + arrow
    return [own, *(line for child in node.children for line in lines(child, asked, depth + 1))]
