"""What fails on purpose."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty_store import open_faulty_store
from two_hosts import BRIDGE_ADDRESS, TwoHosts, why_not


@pytest.fixture(scope="module")
def store():
    """The store that fails on request, as what s3:// means in this process and in those that it starts."""
    with open_store() as store:
        yield store


@contextmanager
def open_store(*address):
    with open_faulty_store(*address) as store, pytest.MonkeyPatch.context() as environment:
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


@pytest.fixture(scope="module")
def bridge_store(hosts):
    """The store that both hosts reach."""
    with open_store(BRIDGE_ADDRESS) as store:
        yield store


@pytest.fixture(scope="module")
def hosts_with_ray(hosts, bridge_store):
    """Ray on both hosts, which has learned where the store is."""
    hosts.start_head()
    hosts.start_second()
    return hosts
