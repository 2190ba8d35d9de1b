"""What fails on purpose."""

import os
from pathlib import Path

import pytest
from faulty_store import open_faulty_store
from two_hosts import TwoHosts, why_not


@pytest.fixture(scope="module")
def store():
    """The store that fails on request, as what s3:// means in this process and in those that it starts."""
    with open_faulty_store() as store, pytest.MonkeyPatch.context() as environment:
        for name, value in store.environment.items():
            environment.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def hosts():
    """Two hosts, on which no Ray runs yet."""
    if reason := why_not():
        pytest.skip(f"no network namespaces here: {reason}")
    with TwoHosts(Path(f"/tmp/ddpm-hosts-{os.getpid()}")) as hosts:  # short: it is in the paths of sockets
        yield hosts
