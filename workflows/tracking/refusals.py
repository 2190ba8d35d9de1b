"""An MLflow that does not answer, or refuses: what is not there is one answer, not being able to say so is another."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

from ..storage import JobFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.exceptions import MlflowException

NUM_RETRIES_OF_MLFLOW = 2
"""of a call that is not answered; its own 7 are minutes without a word"""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""The second is what it says of an alias that nothing has, and of an id that cannot be one."""


def check_absent(err: MlflowException) -> None:
    """Raises JobFailed unless MLflow says that there is no such thing: without an answer nobody is champion or not."""
    if err.error_code not in ABSENT:
        raise JobFailed(f"MLflow did not answer: {str(err).splitlines()[0]}") from err  # its SQL comes after


@contextmanager
def soon_given_up() -> Iterator[None]:
    """MLflow takes the number of its retries from the environment alone; what the user set there stays."""
    name = MLFLOW_HTTP_REQUEST_MAX_RETRIES.name
    if name in os.environ:
        yield
        return
    os.environ[name] = str(NUM_RETRIES_OF_MLFLOW)
    try:
        yield
    finally:
        del os.environ[name]
