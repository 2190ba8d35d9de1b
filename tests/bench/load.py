"""Loading side by side: `make bench-load`. Samples and pictures a second on the same cores, ratios first.

    python tests/bench/load.py [--num N] [--cores N] [--rounds N] [--only WORDS]

Two contests. From tars to raw samples of 1 and 3 KB: ours, with every sample's sha256 checked and without, and stock
webdataset. From a set on disk to shuffled uint8 batches: the pictures are crops of the two photographs that
scikit-learn ships. Every loader has the same cores: with one, all work in one process; with more, ours has threads,
and the others as many worker processes.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import torch
import webdataset
from contest import arguments, circumstances, compete, table, write_section
from PIL import Image
from shard import photographs

from diffusion.data.loader import LoadConfig, SampleReader, batches
from diffusion.data.order import OrderConfig
from diffusion.data.raw import raw_samples
from diffusion.data.shard_set import Header, commit
from diffusion.data.shards import Sample, write_shard
from diffusion.files import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from diffusion.data.shard_set import ShardSet

    Run = Callable[[], object]

SIDE, BATCH, SHUFFLED, NUM_CLASSES = 64, 128, 1024, 10
PER_SHARD = 4096  # as `ddpm shard` makes them
RAW_BYTES = (1024, 3072)
OURS, UNCHECKED, KEPT = "ours", "ours, unchecked", "ours, kept in memory"
STOCK, PILLOW = "webdataset", "webdataset, Pillow"
BY_HAND, SIMPLEJPEG = "webdataset, Pillow by hand", "webdataset, simplejpeg by hand"
MDS, LITDATA = "mosaicml-streaming, simplejpeg", "litdata, simplejpeg"
RAW_PAIRS = [(OURS, STOCK), (UNCHECKED, STOCK)]
PAIRS = [(OURS, PILLOW), (OURS, BY_HAND), (OURS, SIMPLEJPEG), (OURS, MDS), (OURS, LITDATA), (KEPT, PILLOW)]


def shard_set(files: Iterable[bytes], num: int, out: Folder) -> ShardSet:
    """A committed set of these files as its pictures, in tars of PER_SHARD."""
    samples = [
        Sample(
            index=index, split="train", image=data, extension="jpg", label=index % NUM_CLASSES, side=SIDE,
            source=str(index), source_sha256=hashlib.sha256(data).hexdigest(),
        )
        for index, data in enumerate(files)
    ]  # fmt: skip
    reports = [
        write_shard(shard, samples[start : start + PER_SHARD], [], out)
        for shard, start in enumerate(range(0, num, PER_SHARD))
    ]
    classes = [str(label) for label in range(NUM_CLASSES)]
    header = {"config": {}, "config_fingerprint": "", "source_fingerprint": ""}
    return commit(Header(image_size=SIDE, channels=3, classes=classes, **header), reports, out)


def noise(num: int, num_bytes: int) -> Iterator[bytes]:
    """Files of so many bytes that begin like a JPEG."""
    draw = np.random.default_rng(0)
    return (b"\xff\xd8\xff" + draw.bytes(num_bytes - 3) for _ in range(num))


def urls(shards: ShardSet) -> list[str]:
    """Its tars."""
    return [shards.folder.at(tar.name) for tar in shards.tars]


def raw_contestants(shards: ShardSet) -> dict[str, Run]:
    """Each goes through all samples, in order."""

    def ours(check: bool) -> int:
        return sum(len(sample["jpg"]) for tar in shards.tars for _, sample in raw_samples(shards, tar, check))

    def stock() -> int:
        return sum(len(sample["jpg"]) for sample in webdataset.WebDataset(urls(shards), shardshuffle=False))

    return {OURS: lambda: ours(True), UNCHECKED: lambda: ours(False), STOCK: stock}


def seen(loader: Iterable, num: int) -> None:
    """Go through a loader's full batches, and see that they are what was asked for."""
    count = 0
    for images, labels in loader:
        assert images.shape[1:] == (3, SIDE, SIDE), images.shape
        assert images.dtype == torch.uint8, images.dtype
        assert len(images) == len(labels)
        count += len(images)
    assert num - 2 * BATCH <= count <= num, (count, num)  # each worker may leave out a last batch that is not full


def ours(shards: ShardSet, num: int, cores: int, keep: str) -> Run:
    """Default order and settings; every sample's sha256 is checked."""
    reader = SampleReader(shards, config=LoadConfig(decode_threads=cores, keep_decoded=keep))
    order = OrderConfig(global_batch=BATCH, shuffle_window=SHUFFLED)
    return lambda: seen(((b.images, b.labels) for b in batches(reader, order, 0, num // BATCH)), num)


def pixels(data: bytes) -> torch.Tensor:
    """By the codec that ours has too."""
    return torch.from_numpy(np.ascontiguousarray(simplejpeg.decode_jpeg(data).transpose(2, 0, 1)))


def pillow_pixels(data: bytes) -> torch.Tensor:
    """By Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def stock(shards: ShardSet, num: int, cores: int, decode: Callable[[bytes], torch.Tensor] | None) -> Run:
    """webdataset's own recipe: shuffled tars and a shuffle buffer, batched in the workers, WebLoader.

    Its `decode` looks up a decoder for each member of a sample; `decode` given here spares that.
    """
    dataset = webdataset.WebDataset(urls(shards), shardshuffle=len(shards.tars)).shuffle(SHUFFLED)
    if decode is None:
        dataset = dataset.decode("torchrgb8").to_tuple("jpg", "cls")
    else:
        dataset = dataset.to_tuple("jpg", "cls").map_tuple(decode, int)
    loader = webdataset.WebLoader(dataset.batched(BATCH, partial=False), batch_size=None, **_workers(cores))
    return lambda: seen(loader, num)


def mds(shards: ShardSet, num: int, cores: int, folder: Path) -> Run:
    """mosaicml-streaming: MDS shards of the files' bytes, its default shuffle, torch's DataLoader."""
    _stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as writer:
        for sample in _all(shards):
            writer.write({"jpg": sample["jpg"], "cls": int(sample["cls"])})

    class Decoded(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(at)
            return pixels(sample["jpg"]), sample["cls"]

    dataset = Decoded(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, BATCH, **_workers(cores))
    return lambda: seen(loader, num)


def litdata(shards: ShardSet, num: int, cores: int, folder: Path) -> Run:
    """litdata: its chunks of the files' bytes, its shuffle and its loader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index, sample in enumerate(_all(shards)):
        writer[index] = {"jpg": sample["jpg"], "cls": int(sample["cls"])}
    writer.done()
    writer.merge()
    dataset = StreamingDataset(
        str(folder), shuffle=True, transform=lambda sample: (pixels(sample["jpg"]), sample["cls"])
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH, **_workers(cores))
    return lambda: seen(loader, num)


def _all(shards: ShardSet) -> Iterator[dict[str, bytes]]:
    return (sample for tar in shards.tars for _, sample in raw_samples(shards, tar))


def _workers(cores: int) -> dict[str, object]:
    return {"num_workers": cores, "persistent_workers": True} if cores > 1 else {"num_workers": 0}


def _stand_in_for_torchvision() -> None:
    """streaming imports it for data sets of its own, which have no part in this; its wheels are for other torches."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)  # others ask whether it is there
    modules["torchvision.datasets"].VisionDataset = object
    modules["torchvision.transforms.functional"].to_tensor = None
    for name, module in modules.items():
        sys.modules.setdefault(name, module)


def contestants(folder: Path, num: int, cores: int, only: list[str] | None) -> dict[str, Run]:
    """Each goes through an epoch of the same pictures."""
    shards = shard_set(photographs("jpeg", SIDE, num), num, Folder(folder / "tars"))
    makers: dict[str, Callable[[], Run]] = {
        OURS: lambda: ours(shards, num, cores, "off"),
        KEPT: lambda: ours(shards, num, cores, "on"),
        PILLOW: lambda: stock(shards, num, cores, None),
        BY_HAND: lambda: stock(shards, num, cores, pillow_pixels),
        SIMPLEJPEG: lambda: stock(shards, num, cores, pixels),
        MDS: lambda: mds(shards, num, cores, folder / "mds"),
        LITDATA: lambda: litdata(shards, num, cores, folder / "litdata"),
    }
    return {name: make() for name, make in makers.items() if not only or name in only}


def ratios(rate: dict[str, float], pairs: list[tuple[str, str]]) -> list[str]:
    """How many times the rate of the second the first has; nothing where one of them did not take part."""
    return [f"{rate[a] / rate[b]:.2f}" if {a, b} <= rate.keys() else "" for a, b in pairs]


def raw_tables(folder: Path, num: int, rounds: int) -> str:
    """The contest for raw samples."""
    rows, rates = [("raw samples", *(f"{a} / {b}" for a, b in RAW_PAIRS))], [("samples/s", OURS, UNCHECKED, STOCK)]
    for num_bytes in RAW_BYTES:
        shards = shard_set(noise(num, num_bytes), num, Folder(folder / str(num_bytes)))
        seconds = compete(raw_contestants(shards), rounds, warm_up=1)
        rate = {name: num / s for name, s in seconds.items()}
        rows.append((f"of {num_bytes} bytes, with a label", *ratios(rate, RAW_PAIRS)))
        rates.append((f"of {num_bytes} bytes, with a label", *(f"{rate[name]:.0f}" for name in rates[0][1:])))
    return f"{table(rows)}\n\n{table(rates)}"


def batch_tables(folder: Path, num: int, cores: int, rounds: int, only: list[str] | None) -> str:
    """The contest for batches."""
    seconds = compete(contestants(folder, num, cores, only), rounds, warm_up=1)
    rate = {name: num / s for name, s in seconds.items()}
    rows = [("batches", *(f"{a} / {b}" for a, b in PAIRS)), ("ratio of images/s", *ratios(rate, PAIRS))]
    rates = [("batches", *rate), ("images/s", *(f"{rate[name]:.0f}" for name in rate))]
    return f"{table(rows)}\n\n{table(rates)}"


def main() -> None:
    """Every contestant in turn; the tables go into RESULTS.md."""
    args = arguments(__doc__.splitlines()[0], num=20_480, cores=1, rounds=5)
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    with TemporaryDirectory() as folder:
        raw = raw_tables(Path(folder), args.num, args.rounds)
        decoded = batch_tables(Path(folder), args.num, len(cores), args.rounds, args.only)
    text = [
        f"{args.num} samples in tars of {PER_SHARD} on a local disk, in the page cache; {len(cores)} core(s) for each; "
        f"medians of {args.rounds} rounds in which each has a turn. Raw samples on one core: picture and label by key, "
        f"in order. Batches: {BATCH} JPEGs of {SIDE} px, uint8 [b c h w] (ours channels last in memory, "
        f"the others channels first), an epoch; windows (ours) and shuffle buffer "
        f"(webdataset) of {SHUFFLED}; ours checks every sum; the others' formats are made of the same files.\n",
        circumstances(("webdataset", "mosaicml-streaming", "litdata", "simplejpeg", "pillow", "torch")) + "\n",
        raw, "", decoded,
    ]  # fmt: skip
    if args.only:
        print("\n".join(text))
    else:
        write_section("Loading", "\n".join(text))


if __name__ == "__main__":
    main()
