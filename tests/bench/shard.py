"""Sharding side by side: `make bench-shard`. Images a second and core, ratios first; then the driver's memory.

    python tests/bench/shard.py [--num N] [--rounds N] [--only WORDS]

The pictures are crops of the two photographs that scikit-learn ships, enlarged to a camera's size and with a camera's
noise, so that a decoder has to work for its bits.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import ray
import simplejpeg
import webdataset
from contest import arguments, circumstances, compete, table, write_section
from PIL import Image
from sklearn.datasets import load_sample_images

from diffusion.data.plan import ShardConfig, make_plan
from diffusion.data.png import encode_png
from diffusion.data.shard_set import commit_plan
from diffusion.data.shards import make_shard
from diffusion.data.sources.base import Item, in_blocks
from diffusion.files import Folder
from workflows.cluster.auth import guard_local_ray
from workflows.cluster.local import start_local_ray
from workflows.cluster.tasks import map_tasks
from workflows.config import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUM_CORES = 2
OURS_ON_RAY, RAY_DATA = "ours, Ray tasks on 2 cores", "ray.data … write_webdataset on 2 cores"
OURS, PILLOW, BARE = "ours", "Pillow + ShardWriter", "bare decode + resize + encode"
PILLOW_DEFAULT = "Pillow + ShardWriter, PNG as Pillow has it"
PAIRS = [(OURS_ON_RAY, RAY_DATA), (OURS, PILLOW), (OURS, PILLOW_DEFAULT), (OURS, BARE)]
QUALITY = 95


@dataclass(frozen=True)
class Task:
    """From pictures of one kind to squares of one size."""

    kind: str
    side: int
    image_size: int
    encoding: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.side} px to {self.encoding} of {self.image_size}"


TASKS = [
    Task("jpeg", 1024, 256, "jpeg"),
    Task("jpeg", 1024, 64, "png"),
    Task("jpeg", 512, 256, "jpeg"),
    Task("jpeg", 512, 256, "png"),
    Task("png", 256, 64, "png"),
    Task("jpeg", 64, 64, "png"),
]


def photographs(kind: str, side: int, num: int) -> Iterator[bytes]:
    """Files of square photographs, all different."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    draw = np.random.default_rng(0)
    for index in range(num):
        photo = photos[index % len(photos)]
        crop = int(draw.integers(200, min(photo.size)))
        left, top = (int(draw.integers(0, length - crop + 1)) for length in photo.size)
        square = photo.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + crop, top + crop))
        noisy = np.asarray(square) + draw.normal(0, 2, (side, side, 3))
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, kind.upper(), quality=90)
        yield out.getvalue()


def ours(source: Path, out: Path, task: Task, on_ray: bool) -> None:
    """A whole shard set: listed, hashed, read back, with its manifest."""
    folder = Folder(out)
    config = ShardConfig(
        source=(str(source),),
        image_size=task.image_size,
        encoding=task.encoding,
        quality=QUALITY,
        samples_per_shard=512,
    )
    plan = make_plan(config, folder)
    if on_ray:
        reports = list(map_tasks(_make, plan.shards, (plan, str(out)), Workers(num_workers=NUM_CORES)))
    else:
        reports = [make_shard(plan, shard, folder) for shard in plan.shards]
    commit_plan(plan, sorted(reports, key=lambda report: report.shard), folder)


def _make(shard: int, common: tuple) -> object:
    plan, out = common
    return make_shard(plan, shard, Folder(out))


def fitted(data: bytes, task: Task, strategy: int = zlib.Z_RLE) -> bytes:
    """What a plain loop does to a picture; PNG by our strategy for photographs, or another of zlib's."""
    with Image.open(io.BytesIO(data)) as image:
        square = image.convert("RGB").resize((task.image_size, task.image_size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    square.save(out, task.encoding.upper(), quality=QUALITY, compress_type=strategy)
    return out.getvalue()


def pillow(source: Path, out: Path, task: Task, strategy: int = zlib.Z_RLE) -> None:
    """A loop over the files, with webdataset's writer."""
    extension = "jpg" if task.encoding == "jpeg" else task.encoding
    with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=128, verbose=0) as writer:
        for index, path in enumerate(sorted(source.iterdir())):
            writer.write({"__key__": f"{index:09d}", extension: fitted(path.read_bytes(), task, strategy)})


def ray_data(source: Path, out: Path, task: Task) -> None:
    """Ray Data's own way from files to tars."""
    extension = "jpg" if task.encoding == "jpeg" else task.encoding

    def to_sample(row: dict) -> dict:
        return {"__key__": Path(row["path"]).stem, extension: fitted(row["bytes"], task)}

    ray.data.read_binary_files(str(source), include_paths=True).map(to_sample).write_webdataset(str(out), encoder=None)


def bare(files: list[bytes], task: Task) -> None:
    """The fastest codecs alone, nothing read, hashed or written."""
    for data in files:
        if task.kind == "jpeg":
            pixels = simplejpeg.decode_jpeg(data, min_height=task.image_size, min_width=task.image_size)
            image = Image.fromarray(pixels)
        else:
            image = Image.open(io.BytesIO(data))
        square = image.resize((task.image_size, task.image_size), Image.Resampling.LANCZOS)
        if task.encoding == "jpeg":
            simplejpeg.encode_jpeg(np.asarray(square), quality=QUALITY)
        else:
            encode_png(np.asarray(square))


def contestants(folder: Path, task: Task, num: int, only: list[str] | None) -> dict[str, Callable[[], object]]:
    """Each makes its set in a folder of its own, from nothing."""
    source = folder / f"{task.kind}-{task.side}"
    if not source.exists():
        source.mkdir()
        for index, data in enumerate(photographs(task.kind, task.side, num)):
            (source / f"{index:06d}.{task.kind}").write_bytes(data)
    files = [path.read_bytes() for path in sorted(source.iterdir())]

    def into(make: Callable[..., None], *more: object) -> Callable[[], None]:
        def run() -> None:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            make(source, out, task, *more)

        return run

    everyone = {
        OURS_ON_RAY: into(ours, True),
        RAY_DATA: into(ray_data),
        OURS: into(ours, False),
        PILLOW: into(pillow),
        **({PILLOW_DEFAULT: into(pillow, zlib.Z_DEFAULT_STRATEGY)} if task.encoding == "png" else {}),
        BARE: lambda: bare(files, task),
    }
    return {name: run for name, run in everyone.items() if not only or name in only}


def memory(num_items: int) -> float:
    """Peak MB of a process that plans so many inputs."""
    command = [sys.executable, __file__, "--plan", str(num_items)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Listed(ShardConfig):
    """A source of any length that is never read."""

    num_items = 0
    channels, classes = 3, None

    def open_source(self) -> Listed:
        return self

    def blocks(self) -> Iterator[list[Item]]:
        return in_blocks(Item(f"{i // 1000:06d}/{i:09d}.jpg", str(i % 1000), "1") for i in range(self.num_items))


def plan_many(num_items: int) -> None:
    """List, spill and plan; print the peak in MB."""
    Listed.num_items = num_items
    with TemporaryDirectory() as folder:
        plan = make_plan(Listed(), Folder(folder))
        [plan.blocks(shard) for shard in plan.shards]
    status = Path("/proc/self/status").read_text()  # not getrusage, whose peak a process takes over from its parent
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    """Every contestant in turn; the tables go into RESULTS.md."""
    if "--plan" in sys.argv:
        plan_many(int(sys.argv[-1]))
        return
    args = arguments(__doc__.splitlines()[0], num=1000, rounds=3)
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    guard_local_ray("")
    ray.init(address=start_local_ray().address, logging_level="ERROR", log_to_driver=False)
    rows = [("pictures", *(f"{a} / {b}" for a, b in PAIRS))]
    rates = [("images/s a core", OURS_ON_RAY, RAY_DATA, OURS, PILLOW, PILLOW_DEFAULT, BARE)]
    with TemporaryDirectory() as folder:
        for task in TASKS if not args.only else TASKS[-1:]:
            seconds = compete(contestants(Path(folder), task, args.num, args.only), args.rounds, warm_up=1)
            rate = {name: args.num / s / (NUM_CORES if "2 cores" in name else 1) for name, s in seconds.items()}
            rows.append((str(task), *(_ratio(rate, a, b) for a, b in PAIRS)))
            rates.append((str(task), *(f"{rate[name]:.0f}" if name in rate else "" for name in rates[0][1:])))
    text = [
        f"{args.num} pictures, all of a set: listing, reading, fitting, encoding, hashing, tars, manifest. "
        f"Medians of {args.rounds} rounds in which each has a turn. PNG at zlib's default level and by one strategy "
        f"(RLE) on all sides, in ours and the bare loop by our writer; beside it the loop with Pillow's own.\n",
        circumstances(("pillow", "simplejpeg", "ray", "webdataset", "pyarrow")) + "\n",
        table(rows), "", table(rates),
    ]  # fmt: skip
    if args.only:
        print("\n".join(text))
        return
    grown = [("inputs", "peak memory of the process that plans, MB")]
    grown += [(f"{num:,}", f"{memory(num):.0f}") for num in (10_000, 100_000, 1_000_000)]
    write_section("Sharding", "\n".join([*text, "", table(grown)]))


def _ratio(rate: dict[str, float], a: str, b: str) -> str:
    return f"{rate[a] / rate[b]:.2f}" if {a, b} <= rate.keys() else ""


if __name__ == "__main__":
    main()
