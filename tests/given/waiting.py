"""Waiting for what other processes do."""

import subprocess
import sys
import time

LIMIT_S = 300


def wait_for(condition, process=None, limit_s=LIMIT_S):
    """What `condition()` gives, as soon as that is true.

    Raises TimeoutError, or RuntimeError, with its last words, if the process that is to bring it about ends before.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"it ended by itself: {process.communicate()[1]}")
        time.sleep(0.02)
    raise TimeoutError(f"not within {limit_s} s")


def wait_for_nodes(address, count, prefix=(), environment=None):
    """Until the Ray at this address knows of so many living nodes. `prefix`: of the command that asks it."""
    ask = f"import ray; ray.init('{address}'); print(sum(node['Alive'] for node in ray.nodes()))"

    def counted():
        command = [*prefix, sys.executable, "-c", ask]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.stdout.strip() == str(count)

    wait_for(counted)
