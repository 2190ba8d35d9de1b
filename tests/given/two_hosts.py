"""Two hosts on this machine: network namespaces with an address each, joined by a bridge, and a Ray over both.

What is sent to a host whose link is cut is lost without a word, as when a cable is pulled. The bridge has an address
of its own, on which whatever both hosts are to reach (a store) may listen.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waiting import wait_for_nodes

if TYPE_CHECKING:
    from pathlib import Path

BRIDGE, BRIDGE_ADDRESS = "ddpm-bridge", "10.77.0.254"
GCS_PORT, DASHBOARD_PORT = 6379, 8265


def ip(words: str, check: bool = True) -> str:
    """What `ip` says, of iproute2. Raises RuntimeError with its complaint, if it is to be checked."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {words}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Why there can be no hosts here; "" if there can."""
    if not shutil.which("ip"):
        return "there is no ip command"
    try:
        ip("netns add ddpm-probe")
        ip("netns exec ddpm-probe true")
    except RuntimeError as err:
        return str(err)
    finally:
        ip("netns del ddpm-probe", check=False)
    return ""


@dataclass(frozen=True)
class Host:
    """A network namespace; its link's other end, at the bridge, has the same name."""

    name: str
    address: str

    def make(self) -> None:
        """With its link up."""
        ip(f"netns add {self.name}")
        ip(f"link add {self.name} type veth peer name eth0 netns {self.name}")
        ip(f"link set {self.name} master {BRIDGE} up")
        ip(f"-n {self.name} address add {self.address}/24 dev eth0")
        for device in ("eth0", "lo"):
            ip(f"-n {self.name} link set {device} up")
        ip(f"-n {self.name} route add default via {BRIDGE_ADDRESS}")  # by which Ray finds out which address is its own

    def remove(self) -> None:
        """With all that runs in it, if it is there."""
        self.kill()
        ip(f"link del {self.name}", check=False)
        ip(f"netns del {self.name}", check=False)

    def set_link(self, state: str) -> None:
        """`up` or `down`, at the bridge: the host itself sees no difference but that nobody answers."""
        ip(f"link set {self.name} {state}")

    def pids(self) -> list[int]:
        """The processes that are in it."""
        return [int(word) for word in ip(f"netns pids {self.name}", check=False).split()]

    def kill(self) -> None:
        """All its processes at once, as when the power goes."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def command(self, *words: str) -> list[str]:
        """This command, to be run in it."""
        return ["ip", "netns", "exec", self.name, *words]


class TwoHosts:
    """A head and a second host with one CPU each, and the Ray of both; they end with the block."""

    def __init__(self, folder: Path) -> None:
        self.head, self.second = Host("ddpm-host-1", "10.77.0.1"), Host("ddpm-host-2", "10.77.0.2")
        self.folder = folder
        self.address = f"{self.head.address}:{GCS_PORT}"
        self.lost: list[Host] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TwoHosts:
        self._remove()  # what an earlier run that was killed has left
        ip(f"link add {BRIDGE} type bridge")
        ip(f"address add {BRIDGE_ADDRESS}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        for host in (self.head, self.second):
            host.make()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        for process in self._started:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self) -> None:
        for host in (self.head, self.second):
            host.remove()
        ip(f"link del {BRIDGE}", check=False)

    @property
    def environment(self) -> dict[str, str]:
        """For Ray and the drivers."""
        return {**os.environ, "RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:{DASHBOARD_PORT}"}

    def start_head(self, num_cpus: int = 1) -> None:
        """Ray's head, on the first host."""
        dashboard = ["--include-dashboard=true", f"--dashboard-host={self.head.address}"]
        ports = [f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
        self._start(self.head, "--head", f"--num-cpus={num_cpus}", *ports, *dashboard)
        self.wait_for(1)

    def start_second(self) -> None:
        """Ray on the second host, joining the head."""
        self.wait_for(1)
        self._start(self.second, "--num-cpus=1", f"--address={self.address}")
        self.wait_for(2)

    def start_driver(self, command: list[str]) -> subprocess.Popen[str]:
        """One of our commands on the head, as a driver of this Ray."""
        words = self.head.command(*command, "--address", self.address)
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=self.environment)

    def lose(self, host: Host, how: str) -> None:
        """Lose a host: `kill` all that runs there, or `cut` its link."""
        self.lost.append(host)
        if how == "kill":
            host.kill()
        else:
            host.set_link("down")

    def mend(self) -> None:
        """Have a new Ray on both hosts, if one was lost. (The old one would count on what it had for a while yet.)"""
        if not self.lost:
            return
        self.lost = []
        for host in (self.head, self.second):
            host.kill()
            host.set_link("up")
        self.start_head()
        self.start_second()

    def _start(self, host: Host, *words: str) -> None:
        command = host.command(
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            "--object-store-memory=100000000", f"--node-ip-address={host.address}", *words,
            f"--temp-dir={self.folder / host.name}",
        )  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{host.name}.log").open("a") as log:
            self._started.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
            )

    def wait_for(self, count: int) -> None:
        """Until the cluster knows of so many living nodes. Raises TimeoutError."""
        wait_for_nodes(self.address, count, self.head.command(), self.environment)
