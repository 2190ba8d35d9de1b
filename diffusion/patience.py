"""Asking a storage again that fails for a while: a minute of it should cost a minute, and not a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
TRY_AGAIN_AFTER_S = (1, 2, 4, 8, 16, 32)


def patiently(
    call: Callable[[], T],
    try_again_after_s: Sequence[float] = TRY_AGAIN_AFTER_S,
    gives_up: Callable[[float], bool | None] = time.sleep,
) -> T:
    """What the call gives; when it fails by OSError, once more after each of these seconds.

    A file that is not there, or not for us, will not be there later: that is raised at once. `gives_up` waits so many
    seconds, and may say that it is no use. Raises the last failure.
    """
    for seconds in try_again_after_s:
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if gives_up(seconds):
                raise
    return call()
