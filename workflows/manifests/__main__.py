"""`python -m workflows.manifests FOLDER`: write the files of infra/ anew."""

from __future__ import annotations

import sys
from pathlib import Path

from .files import files
from .site import Site

for name, text in files(Site()).items():
    path = Path(sys.argv[1]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
