"""What a cluster is told to run: Kubernetes manifests as plain dicts, pure functions of a `Site`.

The files under infra/ are written from them (`make infra`), and `ddpm schedule emit` prints some.
"""

from .files import files
from .schedule import check_cron, scheduled
from .site import Site
from .text import to_yaml

__all__ = ["Site", "check_cron", "files", "scheduled", "to_yaml"]
