"""Metrics on their way to MLflow: what it cannot take now is brought later, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ..progress import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .spec import Report

TRY_AGAIN_AFTER_S = 5.0
PATIENCE_S = 300.0
HASTE_S = 1.0
"""where the user has interrupted the training"""
SILENCE_S = 15.0
"""after which the user is told: MLflow's client asks a server that is away for two minutes before it gives up"""
MAX_AT_ONCE = 30
"""MLflow takes 1,000 metrics in a call"""


class Points:
    """Reports whose metrics `deliver` is to take, in order, a list at a time, in a thread of their own.

    Whatever it raises, it is called again with the same and what has come since, every few seconds; after the end,
    for five minutes more.
    """

    def __init__(
        self,
        deliver: Callable[[list[Report]], None],
        try_again_after_s: float = TRY_AGAIN_AFTER_S,
        patience_s: float = PATIENCE_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.deliver, self.try_again_after_s, self.patience_s = deliver, try_again_after_s, patience_s
        self.silence_s = silence_s
        self._waiting: list[Report] = []
        self._waiting_since = 0.0
        self._told = False
        self._news = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="points", daemon=True)

    def add(self, report: Report) -> None:
        """Take a report; returns at once."""
        with self._news:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append(report)
            self._news.notify()
            if time.monotonic() - self._waiting_since > self.silence_s:
                self._tell(f"no answer for {self.silence_s:g} s")

    def _tell(self, why: str) -> None:
        """Say once why nothing arrives, until something does."""
        if not self._told:
            say(f"train: MLflow cannot be told how it goes, and will be later: {why}")
        self._told = True

    def __enter__(self) -> Points:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        with self._news:
            self._over = True
            self._news.notify()
        self._thread.join(HASTE_S if kind is KeyboardInterrupt else self.patience_s)
        if self._waiting:
            say(f"train: MLflow could not be told of {len(self._waiting)} points; it does not answer")

    def _run(self) -> None:
        failed = False
        while True:
            with self._news:
                if failed:
                    self._news.wait(self.try_again_after_s)
                else:
                    self._news.wait_for(lambda: self._waiting or self._over)
                some = self._waiting[:MAX_AT_ONCE]
            if not some:
                return
            try:
                self.deliver(some)
            except Exception as err:  # noqa: BLE001 - a tracking server's troubles are of any kind, and none is ours
                with self._news:
                    self._tell((str(err).strip() or type(err).__name__).splitlines()[0][:200])
                failed = True
                continue
            failed = False
            with self._news:
                del self._waiting[: len(some)]
                self._waiting_since, self._told = time.monotonic(), False
