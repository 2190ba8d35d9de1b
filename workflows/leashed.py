"""A `ddpm` command that ends, as by SIGTERM, when whoever holds the other end of its stdin does, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

from .cli import main


def _follow_the_holder() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_follow_the_holder, name="leash", daemon=True).start()
    main(sys.argv[1:])
