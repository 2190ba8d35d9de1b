import os
import shutil

import pytest
import torch

from diffusion.checkpoint import COMMIT, Checkpoint
from diffusion.files import Folder
from workflows.training.checkpoints import (
    begin_attempt,
    newest_checkpoint,
    newest_name,
    reason_to_stop,
    stop_launch,
    time_of_progress,
    write_checkpoint,
)


@pytest.fixture
def run(tmp_path):
    return Folder(tmp_path / "run")


def checkpoint(step, mark=0.0):
    """A checkpoint that can be told from others by its weights."""
    return Checkpoint(step, {"weight": torch.full((3,), mark)}, [], {}, {})


def mark_of(found):
    return found.model["weight"][0].item()


def committed(run):
    return [
        f"{attempt}/{step}"
        for attempt in run.names()
        for step in run.names(attempt)
        if run.exists(f"{attempt}/{step}/{COMMIT}")
    ]


def flip_a_bit(run, name):
    data = bytearray(run.read(name))
    data[-1] ^= 1
    run.write(name, bytes(data))


def test_a_new_run_has_no_checkpoint(run):
    assert newest_checkpoint(run) is None


def test_attempts_are_numbered_from_one_upwards(run):
    assert [begin_attempt(run) for _ in range(11)] == list(range(1, 12))


def test_a_number_is_not_used_again_while_a_later_attempt_is_there(run):
    for _ in range(3):
        begin_attempt(run)
    run.delete("attempt-1")

    assert begin_attempt(run) == 4


def test_an_attempt_alone_is_not_a_checkpoint(run):
    begin_attempt(run)

    assert newest_checkpoint(run) is None


@pytest.mark.parametrize("steps", [[1, 2, 3], [9, 10, 100], [999, 1000]])
def test_the_newest_of_an_attempt_is_the_highest_step(steps, run):
    for step in steps:
        write_checkpoint(run, 1, checkpoint(step), keep=10)

    assert newest_checkpoint(run).step == steps[-1]


def test_the_highest_step_wins_across_attempts(run):
    write_checkpoint(run, 1, checkpoint(300), keep=10)
    write_checkpoint(run, 2, checkpoint(200), keep=10)

    assert newest_checkpoint(run).step == 300


@pytest.mark.parametrize("attempts", [(1, 2), (2, 10), (9, 10)])
def test_of_the_same_step_the_later_attempt_wins_whichever_was_written_last(attempts, run):
    older, later = attempts
    write_checkpoint(run, later, checkpoint(300, mark=2.0), keep=10)
    write_checkpoint(run, older, checkpoint(300, mark=1.0), keep=10)

    assert mark_of(newest_checkpoint(run)) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "COMMIT"])
@pytest.mark.parametrize("damage", [flip_a_bit, Folder.delete])
def test_a_damaged_checkpoint_is_passed_over(damage, name, run):
    write_checkpoint(run, 1, checkpoint(100), keep=10)
    write_checkpoint(run, 1, checkpoint(200), keep=10)
    damage(run, f"attempt-1/step-00000200/{name}")

    assert newest_checkpoint(run).step == 100


def test_a_checkpoint_that_is_passed_over_is_named(run, capsys):
    write_checkpoint(run, 1, checkpoint(100), keep=10)
    write_checkpoint(run, 2, checkpoint(200), keep=10)
    run.delete("attempt-2/step-00000200/state.json")
    newest_checkpoint(run)

    assert f"passing over {run.uri}/attempt-2/step-00000200: checkpoint is not whole" in capsys.readouterr().err


def test_when_all_are_damaged_there_is_none(run):
    for step in (100, 200):
        write_checkpoint(run, 1, checkpoint(step), keep=10)
        run.delete(f"attempt-1/step-{step:08d}/model.safetensors")

    assert newest_checkpoint(run) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(keep, run):
    for step in range(100, 600, 100):
        write_checkpoint(run, 1, checkpoint(step), keep)

    assert run.names("attempt-1") == [f"step-{step:08d}" for step in range(100, 600, 100)][-keep:]


def test_the_newest_are_counted_across_attempts(run):
    for attempt, step in [(1, 100), (1, 200), (2, 300), (2, 400)]:
        write_checkpoint(run, attempt, checkpoint(step), keep=3)

    assert committed(run) == ["attempt-1/step-00000200", "attempt-2/step-00000300", "attempt-2/step-00000400"]


def test_a_late_write_of_an_older_attempt_does_not_remove_what_is_ahead_of_it(run):
    for step in (300, 400):
        write_checkpoint(run, 2, checkpoint(step), keep=2)
    write_checkpoint(run, 1, checkpoint(100), keep=2)

    assert newest_checkpoint(run).step == 400
    assert "attempt-2/step-00000300" in committed(run)


def test_a_checkpoint_in_writing_does_not_count(run):
    write_checkpoint(run, 1, checkpoint(100), keep=2)
    run.write("attempt-1/step-00000200/model.safetensors", b"so far")
    write_checkpoint(run, 1, checkpoint(300), keep=2)

    assert committed(run) == ["attempt-1/step-00000100", "attempt-1/step-00000300"]


def test_a_checkpoint_that_was_half_deleted_does_not_count(run):
    write_checkpoint(run, 1, checkpoint(100), keep=2)
    write_checkpoint(run, 1, checkpoint(200), keep=2)
    run.delete(f"attempt-1/step-00000200/{COMMIT}")

    assert newest_checkpoint(run).step == 100


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_was_just_written_is_there_to_go_on_from(keep, run):
    for step in range(100, 100 * keep + 100, 100):
        write_checkpoint(run, 1, checkpoint(1000 + step), keep)
        flip_a_bit(run, f"attempt-1/step-{1000 + step:08d}/model.safetensors")
    attempt = begin_attempt(run)
    write_checkpoint(run, attempt, checkpoint(100), keep)

    assert newest_checkpoint(run) is not None


def test_a_run_can_be_moved(run, tmp_path):
    write_checkpoint(run, 1, checkpoint(100, mark=3.0), keep=1)
    shutil.move(run.path, tmp_path / "elsewhere")

    assert mark_of(newest_checkpoint(Folder(tmp_path / "elsewhere"))) == 3


def test_the_name_of_the_newest_is_that_of_the_one_to_go_on_from(run):
    assert newest_name(run) == ""

    for step in (1, 3, 2):
        write_checkpoint(run, 1, checkpoint(step), keep=9)

    assert newest_name(run) == "attempt-1/step-00000003"


def test_a_reason_to_stop_is_that_of_its_own_launch_and_no_checkpoint(run):
    stop_launch(run, "first", "the data is bad")

    assert reason_to_stop(run, "first") == "the data is bad"
    assert reason_to_stop(run, "second") == ""
    assert newest_checkpoint(run) is None
    assert begin_attempt(run) == 1


def written_at(run, name, seconds):
    os.utime(run.at(name), (seconds, seconds))


def test_what_an_attempt_goes_on_from_is_as_old_as_its_checkpoint(run):
    for attempt, seconds in ((1, 1000), (2, 2000)):
        folder = write_checkpoint(run, attempt, checkpoint(300), keep=10)
        written_at(folder, COMMIT, seconds)
    write_checkpoint(run, 1, checkpoint(400), keep=10)

    assert time_of_progress(run, 300) == 2000


def test_without_a_checkpoint_it_is_as_old_as_the_first_attempt(run):
    for seconds in range(1000, 12000, 1000):
        written_at(run, f"attempt-{begin_attempt(run)}/attempt.json", seconds)

    assert time_of_progress(run, 0) == 1000
