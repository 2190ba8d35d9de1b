"""`python -m workflows.manifests FOLDER [FLAGS]`: write the files of infra/, or, by flags, those of another cluster."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from .files import files
from .site import Site


@dataclass(frozen=True, kw_only=True)
class Args:
    """Write the manifests of a cluster."""

    folder: Positional[str]
    """where they are written to"""
    site: Annotated[Site, arg(name="")] = field(default_factory=Site)


def main() -> None:
    """The command; exits with 1 and a line for settings that cannot be."""
    try:
        args = tyro.cli(Args)
    except ValueError as err:
        sys.exit(f"manifests: error: {err}")
    for name, text in files(args.site).items():
        path = Path(args.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
