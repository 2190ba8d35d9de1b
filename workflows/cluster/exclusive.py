"""One at a time on a cluster: by the name of an actor, which goes with the driver that made it, however that ends."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

from ..progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "ddpm"
POLL_S = 0.5


class Held:
    """Does nothing: that it is there says that its name is taken."""


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Be the only driver of this cluster in here under this name, waiting for whoever is.

    Where the storage is a local folder, a lock of a file serves; drivers of one cluster on any other storage have this.
    """
    holder = ray.remote(Held).options(name=name, namespace=NAMESPACE, num_cpus=0)
    waits = False
    while True:
        try:
            held = holder.remote()
            break
        except ValueError:  # the name is taken
            if not waits:
                say(f"another process is at work on {name}: waiting for what it makes")
            waits = True
            time.sleep(POLL_S)
    try:
        yield
    finally:
        ray.kill(held)
