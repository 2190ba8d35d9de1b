"""`python -m lint [FOLDER]`: every problem in a line, and exit code 1 if there is one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .judge import problems
from .schemas import Schemas

ROOT = Path(__file__).parents[1]


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description="Judge manifests, image and compose file without a cluster")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument(
        "--kuberay",
        type=Path,
        default=os.environ.get("KUBERAY_SCHEMAS", ROOT.parents[1] / "shared" / "kuberay"),
        help="folder of the schemas of KubeRay's kinds, as RayJob.v1.json (default $KUBERAY_SCHEMAS)",
    )
    given = parser.parse_args()
    schemas = Schemas(given.kuberay)
    found = problems(given.folder, schemas)
    for line in (*schemas.skipped, *map(str, found)):
        print(line, file=sys.stderr)
    print(f"{given.folder}: {len(found)} problems" if found else f"{given.folder}: no problem")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
