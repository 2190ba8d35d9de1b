"""Making items ahead of use, in a thread of their own."""

from __future__ import annotations

import threading
import time
import weakref
from queue import Empty, Queue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

T = TypeVar("T")
DONE = object()


class Prefetch(Generic[T]):
    """An iterator over the same items, made by a thread up to `depth` ahead; what it raises is raised here.

    Closing it (or leaving its `with`, or the last reference to it) ends the thread as soon as the item in its hand
    is made.
    """

    waited_s: float
    """how long the consumer has waited for items so far; the difference of two readings is the wait between them"""

    def __init__(self, items: Iterable[T], depth: int = 4) -> None:
        self.waited_s = 0.0
        self._ready: Queue[object] = Queue(depth)
        self._stop = threading.Event()
        # The thread knows the queue and the flag, never this object, which could not be collected otherwise.
        self._thread = threading.Thread(
            target=_produce, args=(items, self._ready, self._stop), name="prefetch", daemon=True
        )
        self._release = weakref.finalize(self, _release, self._ready, self._stop)
        self._thread.start()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.waited_s += time.perf_counter() - started
        if item is DONE:
            self.close()
            raise StopIteration
        if isinstance(item, _Raised):
            self.close()
            raise item.error
        return item  # type: ignore[return-value]

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and wait until it has ended. There are no items after that."""
        self._release()
        self._thread.join()


class _Raised:
    """An error on its way to the consumer: items may be of any kind, errors among them."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _produce(items: Iterable[object], ready: Queue[object], stop: threading.Event) -> None:
    try:
        for item in items:
            ready.put(item)
            if stop.is_set():
                return
        ready.put(DONE)
    except BaseException as err:  # noqa: BLE001 - handed over to the consumer, whole
        ready.put(_Raised(err))


def _release(ready: Queue[object], stop: threading.Event) -> None:
    """Tell the producer to stop, and make room for what it is putting: it looks at the flag after that."""
    stop.set()
    try:
        while True:
            ready.get_nowait()
    except Empty:
        pass
