"""`kill -9` of a worker, of a node and of the driver while images become shards: time is lost, and nothing else."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from waiting import wait_for, wait_for_nodes

from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.shard_set import DATASET, commit_plan
from diffusion.data.shards import make_shard
from diffusion.files import Folder

pytestmark = pytest.mark.ray

DDPM = [sys.executable, "-m", "workflows.cli", "shard", "--json"]
SETTINGS = {"image_size": 64, "samples_per_shard": 128, "val_fraction": 0.1}
TASK = "ray::_numbered"
LIMIT_S = 120
"""for anything that is waited for"""


@dataclass(frozen=True)
class Task:
    """A source, and what an undisturbed run makes of it."""

    source: Path
    digest: str
    tars: dict[str, bytes]
    seconds: float
    """that one process takes for its shards"""

    def command(self, storage, *words):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
        where = ["--source", str(self.source), "--name", "set", "--storage", str(storage)]
        return [*DDPM, *where, *flags, *map(str, words)]


def make_task(folder, num_pictures):
    """So many names of 200 different pictures, in two classes, and a few that are none."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 96, 96, 3), dtype=np.uint8)
    for label in ("cat", "dog"):
        (folder / "source" / label).mkdir(parents=True)
        (folder / "source" / label / "bad.png").touch()
    for index in range(num_pictures):
        path = folder / "source" / ("cat" if index % 3 else "dog") / f"{index:05d}.png"
        if index < len(pixels):
            Image.fromarray(pixels[index]).save(path)
        else:
            path.hardlink_to(folder / "source" / ("cat" if index % 200 % 3 else "dog") / f"{index % 200:05d}.png")
    out, start = Folder(folder / "undisturbed"), time.monotonic()
    plan = make_plan(ShardConfig(source=(str(folder / "source"),), **SETTINGS), out)
    shards = commit_plan(plan, [make_shard(plan, shard, out) for shard in plan.shards], out)
    return Task(folder / "source", shards.digest, tars_in(out), time.monotonic() - start)


@pytest.fixture(scope="module")
def small_task(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("small"), 1000)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("large"), 3000)


def tars_in(out):
    return {name: out.read(name) for name in out.names() if name.endswith(".tar")}


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """The digest that a run says in the end."""
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])["digest"]


def check_finished(task, out):
    """The set is that of an undisturbed run, byte for byte."""
    assert tars_in(out) == task.tars
    assert out.read_json(DATASET)["digest"] == task.digest


def running_tasks(pids):
    """The workers, below any of these processes, that do a task of ours just now."""
    found = []
    for pid in pids:
        try:
            found += [child for child in psutil.Process(pid).children(recursive=True) if TASK in title_of(child)]
        except psutil.NoSuchProcess:
            continue
    return found


def title_of(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def killed_driver(command, out, seconds, random_):
    """Kill the driver at some moment after it has its plan, if it has not ended before; whether it was killed."""
    process = start(command)
    try:
        wait_for(lambda: out.exists("plan/plan.json"), process)
        process.wait(timeout=random_.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode != 0


def test_a_driver_that_is_killed_and_called_again_makes_the_same_set(small_task, cluster, tmp_path):
    command, out = small_task.command(tmp_path, "--address", cluster.address), Folder(tmp_path / "data" / "set")

    assert killed_driver(command, out, 0.5, random.Random(0))
    assert not out.exists(DATASET)
    assert finish(start(command)) == small_task.digest
    check_finished(small_task, out)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_well(seed, task, cluster, tmp_path):
    random_, out = random.Random(seed), Folder(tmp_path / "data" / "set")
    process = start(task.command(tmp_path, "--address", cluster.address))
    wait_for(lambda: running_tasks([os.getpid()]), process)
    time.sleep(random_.uniform(0, task.seconds / 3))
    victim = random_.choice(wait_for(lambda: running_tasks([os.getpid()]), process))
    victim.kill()

    assert finish(process) == task.digest
    check_finished(task, out)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_workers_that_are_killed_again_and_again_cost_time_or_the_run_but_never_the_set(seed, task, cluster, tmp_path):
    random_, out = random.Random(100 + seed), Folder(tmp_path / "data" / "set")
    command = task.command(tmp_path, "--address", cluster.address)
    process, kills = start(command), 0
    while process.poll() is None:
        for victim in running_tasks([os.getpid()])[:1]:
            if kills < 5:
                victim.kill()
                kills += 1
        time.sleep(random_.uniform(0.1, 0.8))
    process.communicate()

    assert kills >= 3
    assert process.returncode in (0, 1)
    assert finish(start(command)) == task.digest
    check_finished(task, out)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_a_driver_that_is_killed_at_any_moment_takes_its_ray_with_it_and_goes_on_when_called_again(
    seed, task, tmp_path
):
    command, out = task.command(tmp_path), Folder(tmp_path / "data" / "set")
    killed_driver(command, out, 1.2 * task.seconds, random.Random(seed))

    assert finish(start(command)) == task.digest
    check_finished(task, out)


@pytest.mark.chaos
def test_a_driver_that_is_killed_seven_times_gets_there_in_the_end(task, cluster, tmp_path):
    random_, out = random.Random(7), Folder(tmp_path / "data" / "set")
    command, done = task.command(tmp_path, "--address", cluster.address), []
    for _ in range(7):
        process = start(command)
        try:
            process.wait(timeout=random_.uniform(2, 9))  # while it imports, lists, plans, waits or works
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        done.append(len([name for name in out.names("plan") if name.startswith("shard-")]))

    assert done == sorted(done)
    assert finish(start(command)) == task.digest
    check_finished(task, out)


class Nodes:
    """A Ray cluster of two nodes on this machine, with one CPU each."""

    def __init__(self, folder):
        from workflows.cluster.local import free_ports

        self.folder, self.ports = folder, free_ports(9)
        self.address = f"127.0.0.1:{self.ports[0]}"
        head = [f"--port={self.ports[0]}", f"--ray-client-server-port={self.ports[1]}", "--include-dashboard=false"]
        self.processes = [self._start("--head", *head, f"--temp-dir={folder}", ports=self.ports[2:5])]
        self.add()  # it asks for the head until that is up

    def _start(self, *words, ports):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
                   "--num-cpus=1", "--object-store-memory=100000000", f"--dashboard-agent-listen-port={ports[0]}",
                   f"--dashboard-agent-grpc-port={ports[1]}", f"--metrics-export-port={ports[2]}"]  # fmt: skip
        log = (self.folder.parent / f"node-{ports[0]}.log").open("w")
        with log:
            return subprocess.Popen(
                [*command, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def add(self):
        """Start the second node, in the place of one that was killed, and wait until the cluster has it."""
        for dead in self.processes[1:]:
            dead.wait(timeout=LIMIT_S)  # Ray notices within seconds that its raylet is gone
        self.processes[1:] = [self._second()]
        wait_for_nodes(self.address, 2)

    def _second(self):
        from workflows.cluster.local import free_ports

        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            process = self._start(f"--address={self.address}", ports=free_ports(3))
            time.sleep(4)
            if process.poll() is None:
                return process
        raise TimeoutError

    def raylet(self, number):
        """The process of a node that starts its workers."""
        children = psutil.Process(self.processes[number].pid).children(recursive=True)
        (found,) = [child for child in children if child.name() == "raylet"]
        return found

    def stop(self):
        """All processes of both: each node is a process group."""
        for process in self.processes:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def nodes(store):
    folder = Path(f"/tmp/ddpm-nodes-{os.getpid()}")  # short: it is in the paths of sockets
    found = Nodes(folder)
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_a_node_that_is_killed_is_done_without_and_the_run_ends_well(seed, task, nodes, store, tmp_path):
    random_, bucket = random.Random(seed), f"nodes-{seed}"
    store.client.create_bucket(Bucket=bucket)
    out = Folder(f"s3://{bucket}/runs/data/set")
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    if seed:
        nodes.add()
    process = start(task.command(f"s3://{bucket}/runs", "--address", nodes.address, "--tracking-uri", tracking))
    raylet = nodes.raylet(1)
    wait_for(lambda: running_tasks([raylet.pid]), process)
    time.sleep(random_.uniform(0, task.seconds / 3))
    num_lost = len(running_tasks([raylet.pid]))
    raylet.kill()

    assert num_lost >= 1 or seed
    assert finish(process) == task.digest
    check_finished(task, out)
