"""A connection to Ray: refusing what cannot work, and what there is to work with."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from diffusion.settings import narrowed

from ..config import GpuWorkers, Workers
from ..interrupt import handlers_kept
from ..storage import JobFailed
from .local import start_local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..storage import Environment

GROWS_TO = "DDPM_GROWS_TO"
"""A variable of the head of a cluster that grows, as JSON: of each kind of node how many "nodes" there may be, and what
each has (CPU, GPU). Ray itself knows only what is there, which may be nothing yet."""


@contextmanager
def connected(environment: Environment, workers: Workers) -> Iterator[None]:
    """A driver's connection to Ray: the job's own cluster, the one at `address`, or a local one.

    Raises ValueError if the cluster cannot work with a local storage folder, or no node can hold a worker; JobFailed
    if it is lost in the block.
    """
    if environment.address.startswith("http"):
        raise ValueError(
            f"address must be a Ray address (host:6379) for a single stage, got {environment.address}; "
            f"http:// addresses are for run"
        )
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    address = environment.address or os.environ.get("RAY_ADDRESS") or start_local_ray().address
    check_answers(address)
    with redirect_stdout(sys.stderr):  # Ray prints the traceback of each task that it tries again, to the very end
        try:
            with handlers_kept():  # at SIGTERM, Ray would leave with that number as the exit code
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        except ConnectionError as err:
            raise ValueError(f"no Ray cluster answers at address {address}: {err}") from None
        try:
            to_come = [{"Alive": True, "Resources": group} for group in groups_to_come()]
            check_nodes([*ray.nodes(), *to_come], environment, workers)
            yield
        except RayError as err:
            raise JobFailed(_lost(address, err)) from err
        finally:
            ray.shutdown()


def _lost(address: str, err: RayError) -> str:
    what = type(err).__name__
    try:
        check_answers(address)
    except ValueError:
        return f"the Ray cluster at {address} has gone ({what}); when it is back, the same command goes on from here"
    return f"Ray failed: {what}: {(str(err).strip().splitlines() or [''])[0]}; the same command goes on from here"


def check_answers(address: str) -> None:
    """Raises ValueError if nobody listens at host:port. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto" or "://" in address:
        return
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    except (OSError, ValueError, OverflowError) as err:
        raise ValueError(
            f"address (or $RAY_ADDRESS) must be a Ray cluster's host:port, got {address!r}: {err}"
        ) from None


def check_nodes(nodes: list[dict[str, Any]], environment: Environment, workers: Workers) -> None:
    """Raises ValueError if these nodes (as of `ray.nodes()`) cannot do the stage's work."""
    alive = [node for node in nodes if node["Alive"]]
    if len(alive) > 1 and environment.folder.is_local:
        raise ValueError(
            f"storage must be one that all nodes reach, such as s3://…: the cluster has {len(alive)} nodes, "
            f"and {environment.folder.uri} is a local folder"
        )
    most = max(node["Resources"].get("CPU", 0.0) for node in alive)
    if workers.cpus_per_worker > most:
        raise ValueError(
            f"cpus_per_worker must be at most {most:g}, the CPUs of the largest node, got {workers.cpus_per_worker:g}"
        )


def resources() -> dict[str, float]:
    """What the cluster has of everything; where an autoscaler gets more, the most that it may have."""
    return grown(ray.cluster_resources(), groups_to_come())


def groups_to_come() -> list[dict[str, float]]:
    """The kinds of nodes that an autoscaler may get (see GROWS_TO)."""
    groups: list[dict[str, float]] = json.loads(os.environ.get(GROWS_TO, "[]"))
    return groups


def grown(have: dict[str, float], groups: list[dict[str, float]]) -> dict[str, float]:
    """The most that a cluster may have which has so much now."""
    most: Counter[str] = Counter()
    for group in groups:
        most.update({name: amount * group["nodes"] for name, amount in group.items() if name != "nodes"})
    return {name: max(have.get(name, 0.0), most[name]) for name in {*have, *most}}


def num_gpus() -> int:
    """How many the cluster has, or may have."""
    return int(resources().get("GPU", 0))


def drawing_workers(workers: Workers) -> Workers:
    """Of the same CPUs, as drawing wants them: with a GPU each where the cluster has some, else of one thread each."""
    return GpuWorkers(**narrowed(GpuWorkers, workers)) if num_gpus() else one_thread_each(workers)


def one_thread_each(workers: Workers) -> Workers:
    """The same CPUs as more workers of one (or less) each.

    A chunk is drawn by one thread whatever there is, and a part may be a single chunk: then two threads would be one.
    """
    threads, cpus = max(1, int(workers.cpus_per_worker)), workers.cpus_per_worker
    return Workers(num_workers=workers.num_workers * threads, cpus_per_worker=cpus / threads)
