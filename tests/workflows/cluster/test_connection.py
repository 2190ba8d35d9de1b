import os

import pytest

from workflows.cluster.connection import GROWS_TO, check_nodes, connected, groups_to_come, grown
from workflows.cluster.tasks import map_tasks
from workflows.config import TrainStage, Workers
from workflows.manifests import Site
from workflows.manifests.ray import cluster_spec
from workflows.storage import Environment
from workflows.training.fit_on_ray import check_room


def node(cpus, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus}}


def test_a_local_storage_with_a_cluster_of_several_nodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"storage must be one that all nodes reach.*2 nodes.*is a local folder"):
        check_nodes([node(4.0), node(4.0)], Environment(storage=str(tmp_path)), Workers())


def test_dead_nodes_and_remote_storage_do_not_count(tmp_path):
    check_nodes([node(4.0), node(4.0, alive=False)], Environment(storage=str(tmp_path)), Workers())
    check_nodes([node(4.0), node(4.0)], Environment(storage="s3://bucket/runs?region=us-east-1"), Workers())


def test_a_worker_that_no_node_can_hold_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="cpus_per_worker must be at most 4, the CPUs of the largest node, got 5"):
        check_nodes(
            [node(2.0), node(4.0, alive=True)][1:], Environment(storage=str(tmp_path)), Workers(cpus_per_worker=5)
        )


def test_a_cluster_that_grows_from_nothing_has_room_for_what_its_autoscaler_may_get(monkeypatch):
    (ray_head,) = cluster_spec(Site(gpu=True, max_workers=3))["headGroupSpec"]["template"]["spec"]["containers"]
    monkeypatch.setenv(GROWS_TO, next(each["value"] for each in ray_head["env"] if each["name"] == GROWS_TO))
    nothing = {"CPU": 0.0, "memory": 1.0}
    most = grown(nothing, groups_to_come())

    assert most == {"CPU": 3 * 4 + 2 * 3 * 8, "GPU": 2 * 3, "memory": 1.0}
    assert grown({"CPU": 100.0}, groups_to_come())["CPU"] == 100
    assert grown(nothing, []) == nothing
    check_room(most, TrainStage(num_workers=6, use_gpu=True))
    with pytest.raises(ValueError, match="but the cluster has 6"):
        check_room(most, TrainStage(num_workers=7, use_gpu=True))


def double(number, common):
    return (number + common, os.getpid())


def refuse(number, common):
    raise ValueError(f"{number} is refused")


def fail_once(number, marker):
    if not os.path.exists(marker):  # noqa: PTH110 - shipped by value to the task
        open(marker, "w").close()  # noqa: PTH123
        raise OSError("a storage that fails once")
    return number


@pytest.mark.ray
def test_tasks_give_every_result_once_and_pass_errors_through(cluster, tmp_path):
    with connected(Environment(storage=str(tmp_path), address=cluster.address), Workers()):
        results = list(map_tasks(double, iter(range(7)), 100, Workers(num_workers=2)))
        retried = list(map_tasks(fail_once, [5], str(tmp_path / "marker"), Workers()))
        with pytest.raises(ValueError, match="3 is refused"):
            list(map_tasks(refuse, [3], None, Workers()))

    assert sorted(number for number, _ in results) == [100 + i for i in range(7)]
    assert os.getpid() not in {pid for _, pid in results}
    assert retried == [5]


def test_a_dashboard_address_is_refused_for_a_single_stage(tmp_path):
    environment = Environment(storage=str(tmp_path), address="http://127.0.0.1:8265")

    with pytest.raises(ValueError, match="address must be a Ray address"), connected(environment, Workers()):
        pass
