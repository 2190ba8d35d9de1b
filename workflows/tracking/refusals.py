"""What MLflow's refusals mean: a thing that is not there is one answer, a server that cannot say so is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..storage import JobFailed

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""The second is what it says of an alias that nothing has, and of an id that cannot be one."""


def check_absent(err: MlflowException) -> None:
    """Raises JobFailed unless MLflow says that there is no such thing: without an answer nobody is champion or not."""
    if err.error_code not in ABSENT:
        raise JobFailed(f"MLflow did not answer: {str(err).splitlines()[0]}") from err  # its SQL comes after
