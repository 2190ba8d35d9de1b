"""What fails on purpose."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load(name):
    """A module that lies beside the tests: they are not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def faulty():
    """The module of the store that fails on request."""
    return load("faulty_store")


@pytest.fixture(scope="session")
def two_hosts():
    """The module of the hosts that can be lost."""
    return load("two_hosts")


@pytest.fixture(scope="module")
def store(faulty):
    """That store, as what s3:// means in this process and in those that it starts."""
    with faulty.open_faulty_store() as store, pytest.MonkeyPatch.context() as environment:
        for name, value in store.environment.items():
            environment.setenv(name, value)
        yield store
