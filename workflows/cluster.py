"""Ray, as far as we use it: connecting, refusing what cannot work, and tasks under back-pressure."""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from diffusion.settings import narrowed

from .config import GpuWorkers, Workers
from .interrupt import handlers_kept
from .local_ray import start_local_ray
from .on_worker import on_worker
from .progress import Bar, say
from .storage import JobFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .storage import Environment

GROWS_TO = "DDPM_GROWS_TO"
"""A variable of the head of a cluster that grows, as JSON: of each kind of node how many "nodes" there may be, and what
each has (CPU, GPU). Ray itself knows only what is there, which may be nothing yet."""
FINDERS = 16
WARM_UP_S = 0.2
S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")


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


def warm_up(function: Callable[..., object], workers: Workers) -> None:
    """Let Ray start the workers that `function` will be mapped over, which import what it imports: in the background.

    That takes seconds, in which a job has other things to do.
    """
    task = ray.remote(_import).options(num_cpus=workers.cpus_per_worker)
    for _ in range(workers.num_workers):
        task.remote(function.__module__)


def _import(name: str) -> None:
    importlib.import_module(name)
    time.sleep(WARM_UP_S)  # or one worker does it for all


def map_tasks(function: Callable[[S, C], R], specs: Iterable[S], common: C, workers: Workers) -> Iterator[R]:
    """`function(spec, common)` for every spec in Ray tasks, at most `num_workers` at a time; results as they come.

    A task is retried if its worker dies or the storage fails it (OSError); what it raises
    else is raised here.
    """
    task = ray.remote(on_worker(function)).options(
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
        max_retries=3,
        retry_exceptions=[OSError],
        scheduling_strategy="SPREAD",  # Ray would fill one node first, and its disk and network with it
    )
    shared = ray.put(common)
    running: list[Any] = []
    for spec in specs:
        if len(running) == workers.num_workers:
            yield _next_result(running)
        running.append(task.remote(spec, shared))
    while running:
        yield _next_result(running)


def make_missing(
    title: str,
    specs: Sequence[S],
    find: Callable[[S], R | None],
    function: Callable[[S, C], R],
    common: C,
    workers: Workers,
    num_images: Callable[[R], int],
    total: int,
) -> list[R]:
    """The result of every spec, in their order: those that `find` finds of an earlier attempt, and the others by tasks.

    Draws a bar of `total` images, of which a result is worth `num_images`.
    """
    with ThreadPoolExecutor(FINDERS) as pool:  # from an object store each answer takes a round trip
        results = {index: result for index, result in enumerate(pool.map(find, specs)) if result is not None}
    if results:
        say(f"{title}: going on after {len(results)} of {len(specs)} parts")
    missing = ((index, spec) for index, spec in enumerate(specs) if index not in results)
    done = sum(map(num_images, results.values()))
    with Bar(title, total, "img", done=done) as bar:
        for index, result in map_tasks(_numbered, missing, (function, common), workers):
            results[index] = result
            done += num_images(result)
            bar.update(done, f"{len(results)}/{len(specs)} parts")
    return [results[index] for index in range(len(specs))]


def _numbered(spec: tuple[int, Any], common: tuple[Callable[[Any, Any], Any], Any]) -> tuple[int, Any]:
    function, shared = common
    return spec[0], function(spec[1], shared)


def _next_result(running: list[Any]) -> Any:
    (done, *_), _ = ray.wait(running)
    running.remove(done)
    try:
        return ray.get(done)
    except RayTaskError as err:
        raise err.cause from err
