"""The stages of a run as jobs of a real Ray: what they take for done, and where they work."""

from dataclasses import replace

import pytest
from growing_source import add_digits

from workflows import run
from workflows.commands.presets import preset
from workflows.storage import Environment

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")]  # of Ray's client


@pytest.fixture
def environment(cluster, tmp_path):
    return Environment(storage=str(tmp_path / "runs"), address=cluster.dashboard)


def config_of(*source):
    return replace(preset("smoke"), name="grows", shard=replace(preset("smoke").shard, source=tuple(map(str, source))))


def test_on_a_head_of_this_machine_a_source_is_found_from_our_folder(environment, tmp_path, monkeypatch):
    add_digits(tmp_path / "pictures", range(80))
    monkeypatch.chdir(tmp_path)
    shards = run.Stages(config_of("./pictures"), environment).shards()

    assert sum(shards.counts.values()) == 80


def test_pictures_that_come_while_a_job_is_at_work_are_left_for_the_next(environment, tmp_path, monkeypatch):
    source, run_job = tmp_path / "source", run.run_job
    stages = run.Stages(config_of(source), environment)
    come = iter([range(80, 100), range(100, 120)])

    def run_job_and_grow(*job):
        run_job(*job)
        add_digits(source, next(come))

    monkeypatch.setattr(run, "run_job", run_job_and_grow)
    add_digits(source, range(80))
    counts = [sum(each.counts.values()) for each in (stages.shards(), stages.refreshed())]

    assert counts == [80, 100]
    assert stages.reused == []
