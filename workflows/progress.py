"""Progress bars, also through a job's log: a stage draws its bar or, in a Ray job, writes lines that `run` draws."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from types import TracebackType

MARK = "@progress "
AS_LINES = "DDPM_PROGRESS_LINES"
"""environment variable that makes a process write its progress for another to draw"""
INTERVAL_S = 0.5


def say(message: str) -> None:
    """A line for the user, on stderr, above any bar."""
    tqdm.write(f"ddpm: {message}", file=sys.stderr)


class Bar:
    """How far a stage is. Counts are in `unit`; `done` is what an earlier attempt already had."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit, self.first = title, total, unit, done
        self._bar: tqdm[Any] | None = None
        self._last = 0.0

    def __enter__(self) -> Bar:
        self.update(self.first)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done, with a few words beside it."""
        if not os.environ.get(AS_LINES):
            self.draw(done, note)
        elif done >= self.total or time.monotonic() - self._last > INTERVAL_S:
            self._last = time.monotonic()
            state = [self.title, self.total, self.unit, self.first, done, note]
            print(MARK + json.dumps(state), flush=True)

    def draw(self, done: int, note: str) -> None:
        """Draw the bar on stderr."""
        bar = self._bar
        if bar is None:
            bar = self._bar = tqdm(
                total=self.total, desc=f"{self.title:<8}", unit=self.unit, initial=self.first, file=sys.stderr,
                dynamic_ncols=True, leave=True, mininterval=INTERVAL_S,
            )  # fmt: skip
        if bar.n == self.first < done < self.first + self.total / 10:  # what came before was starting, not working
            bar.initial = done
            bar.unpause()
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= self.total:
            bar.refresh()


class View:
    """Draws the progress that a job wrote into its log."""

    def __init__(self) -> None:
        self._bars: dict[str, Bar] = {}

    def feed(self, line: str) -> bool:
        """Take in a line of the log; whether it was one of progress."""
        if not line.startswith(MARK):
            return False
        if os.environ.get(AS_LINES):  # for whoever reads our own log
            print(line, flush=True)
            return True
        title, total, unit, first, done, note = json.loads(line.removeprefix(MARK))
        if title not in self._bars:
            self.close()  # one after the other: the last one stays as it is, above
            self._bars[title] = Bar(title, total, unit, first)
        self._bars[title].draw(done, note)
        return True

    def close(self) -> None:
        """Leave the bars as they are, and the cursor below them."""
        for bar in self._bars.values():
            bar.__exit__()
