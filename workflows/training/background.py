"""Work that the training does not wait for: done in a thread, one piece at a time, in the order given."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from diffusion.patience import TRY_AGAIN_AFTER_S, patiently

from ..progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Background:
    """Writes to storage that may fail for a while, beside the work that goes on.

    A piece that fails (OSError) is tried again after each of the given seconds; then it is given up with a line for
    the user, as the next piece takes its place. Only of the last piece does anybody hear, by `finish`.
    """

    def __init__(self, try_again_after_s: Sequence[float] = TRY_AGAIN_AFTER_S) -> None:
        self.try_again_after_s = try_again_after_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._ending = threading.Event()
        self._last: Future[None] = Future()
        self._last.set_result(None)

    def wait(self) -> None:
        """Until nothing is under way: what the next piece needs room for is held once, not twice."""
        if (err := self._last.exception()) is not None:
            say(f"{err}; going on")

    def start(self, what: str, piece: Callable[[], None]) -> None:
        """Begin a piece of work, after the one before; `what` names it if it fails."""
        self.wait()
        self._last = self._pool.submit(self._patiently, what, piece)

    def finish(self) -> None:
        """Wait for the last piece. Raises OSError if it failed to the end."""
        self._pool.shutdown()
        self._last.result()

    def abandon(self) -> None:
        """Let the piece under way end, but try nothing again: the work that it belongs to has failed."""
        self._ending.set()
        self._pool.shutdown()

    def _patiently(self, what: str, piece: Callable[[], None]) -> None:
        try:
            patiently(piece, self.try_again_after_s, self._ending.wait)
        except OSError as err:
            raise OSError(f"{what} could not be written: {err}") from err
