"""Who may talk to our Ray. Ray reads this when it is imported, so it is decided before."""

from __future__ import annotations

import os
import secrets
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .storage import Environment


def guard_local_ray(environment: Environment) -> None:
    """Give a Ray that we are about to start on this machine a token of its own; leave clusters as they are.

    Left to itself Ray would write a token into the home directory, which every later `ray start` then obeys;
    without any, whoever else is on the machine could run jobs as us.
    """
    assert "ray" not in sys.modules, "ray was imported before its token was set"
    if not environment.address and "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
