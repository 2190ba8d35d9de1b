"""How the workers of a training find each other, and how long one waits for another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import ray.util
from ray.train.torch import TorchConfig

if TYPE_CHECKING:
    from ray.train.backend import BackendConfig
    from ray.train.v2._internal.execution.worker_group import WorkerGroup


class OnTheNodesInterface(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group, made on the network interface that the workers' nodes have in Ray."""

    def on_start(self, worker_group: WorkerGroup, backend_config: BackendConfig) -> None:
        """Called by Ray once the workers are there."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class ProcessGroup(TorchConfig):  # type: ignore[misc]
    """What Ray Train is to make of its workers."""

    @property
    def backend_cls(self) -> type[OnTheNodesInterface]:
        """What Ray calls to make it."""
        return OnTheNodesInterface


def choose_interface() -> None:
    """Have gloo use the interface of this node's address in Ray, unless the user has said which.

    It would use the address that the host's own name stands for, which is 127.0.1.1 on many a Linux.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
