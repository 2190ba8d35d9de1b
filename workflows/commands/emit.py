"""`ddpm schedule emit`: a command on a schedule, as Kubernetes is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..manifests import Site, scheduled
from ..submit import check_sendable
from ..words import value_of

if TYPE_CHECKING:
    from .schedule_arguments import ScheduleEmitArgs


def emitted(args: ScheduleEmitArgs) -> list[dict[str, Any]]:
    """The manifests. Raises ValueError for what Kubernetes would refuse, or results that would be left in a pod."""
    check_sendable(args.command)
    storage = value_of(args.command, "--storage")
    if storage and ("://" not in storage or storage.startswith("file:")):
        raise ValueError(
            f"storage must be one that every pod reaches, such as s3://…, got {storage}; "
            f"without --storage it is that of the cluster's settings"
        )
    site = Site(namespace=args.namespace, image=args.image, gpu=args.gpu)
    return scheduled(site, args.name, args.cron, args.command, args.timezone, args.deadline_s)
