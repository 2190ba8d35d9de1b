"""`ddpm schedule emit`: a command on a schedule, as Kubernetes is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion.data.sources.digits import DIGITS

from ..manifests import Site, scheduled
from ..submit import check_sendable
from ..words import values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .schedule_arguments import ScheduleEmitArgs


COPIED = "copy it to where they do, and give its URI"
PLACES = {
    "storage": "without --storage it is that of the cluster's settings",
    "config": COPIED,
    "source": COPIED,
    "shard.source": COPIED,
    "data": COPIED,
    "out": "without --out it is in the storage",
}
"""flags that name a place, and what to do about one that only this machine has"""


def emitted(args: ScheduleEmitArgs) -> list[dict[str, Any]]:
    """The manifests. Raises ValueError for what Kubernetes would refuse, or results that would be left in a pod."""
    check_sendable(args.command)
    check_places(args.command)
    site = Site(namespace=args.namespace, image=args.image, gpu=args.gpu)
    return scheduled(site, args.name, args.cron, args.command, args.timezone, args.deadline_s)


def check_places(command: Sequence[str]) -> None:
    """Raises ValueError for a command that names a file or a folder of this machine."""
    for name, advice in PLACES.items():
        for place in values_of(command, f"--{name}"):
            comes_along = place == DIGITS and name.endswith("source")
            if ("://" not in place or place.startswith("file:")) and not comes_along:
                raise ValueError(
                    f"{name} must be one that every pod reaches, such as s3://…, got {place or 'none'}; {advice}"
                )
