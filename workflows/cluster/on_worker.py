"""What the process of one of Ray's workers needs before it does anything of ours."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .credentials import load_credentials
from .machine import keep_memory

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def on_worker(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, with the job's credentials loaded before it and the memory kept that it frees.

    A worker's own environment is the visible one, without credentials.
    """

    @functools.wraps(function)
    def prepared(*args: P.args, **kwargs: P.kwargs) -> R:
        load_credentials()
        keep_memory()
        return function(*args, **kwargs)

    return prepared
