import os
import time

from workflows.cluster import local
from workflows.cluster.local import KEEP_LOGS_S, PREFIX, sweep_logs


def test_only_logs_in_which_nothing_was_written_for_a_week_are_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "LOGS", tmp_path)
    long_ago = time.time() - KEEP_LOGS_S - 60
    for name in (f"{PREFIX}dead", f"{PREFIX}at-work", "of-others"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "logs/gcs_server.out").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    (tmp_path / f"{PREFIX}at-work/logs/gcs_server.out").touch()
    sweep_logs()

    assert {path.name for path in tmp_path.iterdir()} == {f"{PREFIX}at-work", "of-others"}
