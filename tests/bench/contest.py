"""Contestants run in turn, on one machine, in one process: what is compared is what was measured side by side."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[[], object]

RESULTS = Path(__file__).parent / "RESULTS.md"


def arguments(about: str, **defaults: int) -> argparse.Namespace:
    """The command line of a contest: these numbers, and which contestants; sets torch's threads and seed."""
    parser = argparse.ArgumentParser(description=about)
    for name, value in {"rounds": 7, "threads": torch.get_num_threads(), **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="*", help="contestants whose name contains one of these; RESULTS.md is left")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def chosen(
    makers: dict[str, Callable[[], Callable[[], object]]], only: list[str] | None
) -> dict[str, Callable[[], object]]:
    """The contestants that take part, made."""
    return {name: make() for name, make in makers.items() if not only or any(word in name for word in only)}


def ratios(seconds: dict[str, float], pairs: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """A row for each pair that took part: how many times the images/s of the second the first has."""
    rows = [(f"{a} / {b}", f"{seconds[b] / seconds[a]:.2f}") for a, b in pairs if {a, b} <= seconds.keys()]
    return [("ratio of images/s", ""), *rows]


def compete(contestants: dict[str, Run], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each contestant's call, over `rounds` in which every one has a turn."""
    for run in contestants.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            _wait_for_device()
            started = time.perf_counter()
            run()
            _wait_for_device()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def circumstances(packages: tuple[str, ...]) -> str:
    """On what, with what and when."""
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    model = next((line.split(":")[1].strip() for line in lscpu.splitlines() if line.startswith("Model name")), "?")
    bf16 = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in lscpu]
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{model} ({', '.join(bf16) or 'no bf16'})"
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    ).stdout.strip()
    threads = torch.get_num_threads()
    return f"{date.today()}, {chip}, {threads} threads, Python {platform.python_version()}, {versions}, at {commit}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def write_section(title: str, text: str) -> None:
    """Put a section into RESULTS.md, in place of the one of this title if there is one, and on the terminal."""
    section = f"## {title}\n\n{text.strip()}\n"
    print(section)
    old = RESULTS.read_text() if RESULTS.exists() else "# Measured side by side\n"
    head, *sections = old.split("\n## ")
    kept = [f"## {part.strip()}\n" for part in sections if part.split("\n", 1)[0] != title]
    RESULTS.write_text("\n".join([head.strip() + "\n", *kept, section]))


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, the first row as its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *body))
