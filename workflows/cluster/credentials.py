"""Credentials of a job on a cluster: a file there that the job names, never its visible environment.

Ray shows a job's command and its environment to whoever may list jobs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CREDENTIALS_FILE = "DDPM_CREDENTIALS_FILE"
"""environment variable of the path of such a file: lines of NAME=VALUE, `#` before what is none"""
LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def load_credentials() -> None:
    """Put what the file of $DDPM_CREDENTIALS_FILE says into this process's environment, where that says nothing.

    Raises ValueError if there is no such file, or a line that is not NAME=VALUE; the line itself is not shown.
    """
    if not (path := os.environ.get(CREDENTIALS_FILE, "")):
        return
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as err:
        raise ValueError(f"credentials must be a file that can be read where the job runs, got {path}: {err}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"credentials must be lines of NAME=VALUE, got another in line {number} of {path}")
        os.environ.setdefault(found[1], found[2])


def check_no_password(words: Sequence[str]) -> None:
    """Raises ValueError if a command has a URI with a password in it: everybody would see it."""
    for word in words:
        if re.search(r"://[^/@\s]*:[^/@\s]+@", word):
            shown = re.sub(r"(://[^/@\s:]*):[^/@\s]+@", r"\1:…@", word)
            raise ValueError(
                f"a submitted command must not have a password in it, which the cluster would show, got {shown}; "
                f"put it into a file there, and its path into --credentials"
            )
