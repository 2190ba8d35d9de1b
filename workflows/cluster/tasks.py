"""Work on a Ray that we are connected to, as tasks under back-pressure."""

from __future__ import annotations

import functools
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from ..progress import Bar, say
from .on_worker import on_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..config import Workers

FINDERS = 16
WARM_UP_S = 0.2
S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")


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
    task = ray.remote(on_worker(_in_folder(str(Path.cwd()), function))).options(
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


def _in_folder(folder: str, function: Callable[[S, C], R]) -> Callable[[S, C], R]:
    """The same function, called in this folder on nodes that have it, as paths may be relative to it.

    A worker's own is that in which Ray was started.
    """

    @functools.wraps(function)
    def there(spec: S, common: C) -> R:
        with chdir(folder) if Path(folder).is_dir() else nullcontext():
            return function(spec, common)

    return there


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
