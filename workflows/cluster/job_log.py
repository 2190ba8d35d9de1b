"""What a job says in its log: progress, drawn as it comes; its result; its last word where it failed."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError

from ..progress import MARK, View, say

if TYPE_CHECKING:
    from ray.job_submission import JobStatus

    from .client import Client

ERROR = "ddpm: error: "
"""how a command's last line on stderr begins when it fails"""


class Shown:
    """What the user has seen of a job's log: its progress as bars, and what it says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view = View()
        self._length = 0
        self.over = False

    def close(self) -> None:
        """Show no more, and leave the cursor below the bars."""
        with self._lock:
            self.over = True
            self._view.close()

    def up_to(self, log: str) -> None:
        """Show the whole lines of a log, given from its beginning, that were not shown yet."""
        with self._lock:
            if self.over:
                return
            end = log.rfind("\n") + 1
            for line in log[self._length : end].splitlines():
                if not self._view.feed(line) and line.startswith("ddpm: ") and not line.startswith(ERROR):
                    say(line.removeprefix("ddpm: "))
            self._length = max(self._length, end)


def show_log(client: Client, job_id: str, shown: Shown) -> None:
    """Show the log as it comes. That the stream ends says nothing about the job: it is read anew until that is over."""

    async def read() -> None:
        log = ""
        async for chunk in client.tail_job_logs(job_id):
            log += chunk
            shown.up_to(log)

    while not shown.over:
        with suppress(RuntimeError, OSError, ClientError):
            asyncio.run(read())
        time.sleep(1)


def last_word(log: str, job_id: str, status: JobStatus) -> str:
    """What the job said of its failure; the end of its log if it could not say anything."""
    if lacks := re.findall(r"ModuleNotFoundError: No module named '(\w+)'", log):
        return f"job {job_id}: the cluster's python has no {lacks[-1]}; name the interpreter that has it by --python"
    errors = [line.removeprefix(ERROR) for line in log.splitlines() if line.startswith(ERROR)]
    if errors:
        return errors[-1]
    if not log:
        return f"job {job_id} ended as {status.value}; its log is not to be had"
    return f"job {job_id} ended as {status.value}; the end of its log:\n" + "\n".join(log.splitlines()[-20:])


def result_in(log: str) -> str:
    """What a command that succeeded said in the end, after all progress: its result."""
    lines = log.splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith((MARK, "ddpm: ", "Running entrypoint"))]
    return "\n".join(lines[max(told, default=-1) + 1 :])
