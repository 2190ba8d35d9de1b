"""Who may talk to our Ray. Ray reads this when it is imported, so it is decided before."""

from __future__ import annotations

import os
import secrets
import sys


def guard_local_ray(address: str) -> None:
    """Give a Ray that we are about to start (no address) a token of its own; leave clusters as they are.

    Left to itself Ray would write a token into the home directory, which every later `ray start` then obeys;
    without any, whoever else is on the machine could run jobs as us.
    """
    decided = "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ
    if not (address or decided or "RAY_ADDRESS" in os.environ):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
