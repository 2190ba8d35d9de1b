import os

import psutil
import ray.util

from workflows.training.process_group import choose_interface


def test_gloo_is_given_the_interface_of_the_nodes_address(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    addresses = psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]]

    assert ray.util.get_node_ip_address() in [each.address for each in addresses]


def test_the_users_choice_of_interface_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    choose_interface()

    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
