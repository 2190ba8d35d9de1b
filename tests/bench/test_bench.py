"""The benchmarks run, in their shortest form, without the peers that have to be installed for them."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("train.py", ("--batch", "1", "--only", "ours, float32", "diffusers, float32", "floor")),
        (
            "sample.py",
            ("--num", "1", "--steps", "1", "--only", "ours, float32", "DDIMPipeline, float32", "alone, float32"),
        ),
    ],
)
def test_a_contest_prints_the_ratios_of_those_who_took_part_and_leaves_the_results(program, flags):
    results = HERE / "RESULTS.md"
    before = results.read_bytes() if results.exists() else None
    command = [sys.executable, HERE / program, "--rounds", "1", "--threads", "1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rates = [line for line in done.stdout.splitlines() if line.count("|") == 4 and "---" not in line]

    assert done.returncode == 0, done.stderr
    assert len(rates) == 1 + 3
    assert all(float(cell) > 0 for line in rates[1:] for cell in line.split("|")[2:4])
    assert (results.read_bytes() if results.exists() else None) == before


def test_loading_is_measured_beside_stock_webdataset():
    results = HERE / "RESULTS.md"
    before = results.read_bytes()
    flags = ("--num", "512", "--rounds", "1", "--threads", "1", "--only", "ours", "webdataset, Pillow")
    done = subprocess.run([sys.executable, HERE / "load.py", *flags], capture_output=True, text=True, check=False)
    rows = [line.split("|")[2:-1] for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line]

    assert done.returncode == 0, done.stderr
    assert [len(row) for row in rows] == [2, 2, 2, 3, 3, 3, 6, 6, 2, 2]
    assert all(float(cell) > 0 for row in (*rows[1:3], *rows[4:6], rows[9]) for cell in row)
    assert results.read_bytes() == before


@pytest.mark.chaos
def test_the_quality_curve_is_measured_from_training_to_table():
    done = subprocess.run([sys.executable, HERE / "quality.py", "--quick"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "v cosine simple" in done.stdout
