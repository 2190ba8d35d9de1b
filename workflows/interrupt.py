"""Ctrl-C and SIGTERM: the command tidies up and ends, within seconds, whatever libraries make of signals.

Both raise KeyboardInterrupt in the main thread, once. What then takes too long is not waited for: all that we write
is whole or not there, and what we started ends with us, as after `kill -9`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CODE = 130
LINE = "ddpm: error: interrupted; the same command goes on from here"
LIMIT_S = 5.0
"""for tidying up: telling MLflow and Ray, which may not answer"""


class Interruptible:
    """Around all that a command does. Only for the main thread.

    A SIGINT that the shell has us ignore, as it does for what runs in a script's background, stays ignored.
    """

    def __init__(self) -> None:
        self.came = False
        """whether one of the signals did, whoever had its handler then"""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._leaving = threading.Lock()

    def __enter__(self) -> Interruptible:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        # written to by the kernel's own handler: a main thread that is deep in C++ runs none of Python's
        self._fd_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="interrupt", daemon=True).start()
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if kind is KeyboardInterrupt or self.came:  # or SystemExit: Ray's own way, while it had the handler
            self._leave()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(signal.set_wakeup_fd(self._fd_before))

    def _watch(self) -> None:
        while byte := os.read(self._read, 1):
            if byte[0] in SIGNALS:
                self.came = True
                time.sleep(LIMIT_S)
                self._leave()
        os.close(self._read)

    def _leave(self) -> NoReturn:
        """At once: what Python and libraries do at their end can take many seconds. Our Ray's guard sees us go."""
        with self._leaving:  # never given back: one line
            sys.stdout.flush()
            print(LINE, file=sys.stderr, flush=True)
            os._exit(CODE)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what tidies up is not to be interrupted in turn
    raise KeyboardInterrupt


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Around a call into a library that installs handlers of its own: in the end they are as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
