"""An object store that fails at every call in turn: no sample is lost, doubled or refused, and no half is seen."""

import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import pytest
from faulty_store import Fault
from PIL import Image

from diffusion.data.plan import ShardConfig, make_plan, read_plan, source_fingerprint
from diffusion.data.shard_set import DATASET, commit_plan, delete_from, open_shard_set
from diffusion.data.shards import make_shard, read_report
from diffusion.files import Folder

NUM_PICTURES, NUM_NOTES = 30, 40  # notes are listed, and so make blocks, but are not read: fewer calls
NUM_BUCKETS = 2  # a call that fails for ever keeps pyarrow busy for 6 s, asleep; more than two wait for each other
CI_STRIDE = 15
TROUBLES = ("busy", "drop before", "drop after")


def config_of(bucket):
    return ShardConfig(
        source=(f"s3://{bucket}/source",), image_size=8, samples_per_shard=32, val_fraction=0.3, max_reject_fraction=0.1
    )


def sharded(bucket):
    """What `ddpm shard` does, also when it is called again, but for Ray."""
    config, out = config_of(bucket), Folder(f"s3://{bucket}/out")
    if out.exists(DATASET):
        return open_shard_set(out)
    plan = read_plan(out)
    if plan is None or plan.source_fingerprint != source_fingerprint(config.open_source().blocks()):
        delete_from(out, 0)
        plan = make_plan(config, out)
    reports = [read_report(out, shard) or make_shard(plan, shard, out) for shard in plan.shards]
    return commit_plan(plan, reports, out)


def fill(client, bucket):
    client.create_bucket(Bucket=bucket)
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, 8, 8, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        out = io.BytesIO()
        Image.fromarray(picture).save(out, format="PNG")
        name = f"source/{'cat' if index % 3 else 'dog'}/{index:04d}.png"
        client.put_object(Bucket=bucket, Key=name, Body=out.getvalue())
    client.put_object(Bucket=bucket, Key="source/dog/bad.png", Body=b"")
    for index in range(NUM_NOTES):
        client.put_object(Bucket=bucket, Key=f"source/cat/{index:04d}.txt", Body=b"a note")


def hashes(client, bucket):
    """An MD5 for every file of the set, as the store keeps it; without the marks that stand for empty folders."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="out/")
    found = {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}
    return {key.removeprefix("out/"): tag for key, tag in found.items() if not key.endswith("/")}


def empty(client, bucket):
    found = client.list_objects_v2(Bucket=bucket, Prefix="out")
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": entry["Key"]} for entry in found["Contents"]]})


@dataclass(frozen=True)
class Unhindered:
    """What a run that nothing befell makes, and the calls that it makes for it."""

    calls: list
    digest: str
    hashes: dict[str, dict[str, str]]
    """by bucket: dataset.json and the plan name the source"""


@pytest.fixture(scope="module")
def unhindered(store):
    client, found, digests, calls = store.client, {}, set(), []
    for number in range(NUM_BUCKETS):
        bucket = f"bucket-{number}"
        fill(client, bucket)
        store.buckets[bucket].forget()
        digests.add(sharded(bucket).digest)
        calls = calls or store.buckets[bucket].calls
        found[bucket] = hashes(client, bucket)
    (digest,) = digests
    return Unhindered(calls, digest, found)


class Suffering:
    """Runs that a fault befalls, each in a bucket of its own; `outcomes` counts how they went."""

    def __init__(self, store, unhindered):
        self.store, self.unhindered = store, unhindered
        self.client = store.client
        self.free = SimpleQueue()
        for bucket in unhindered.hashes:
            self.free.put(bucket)
        self.outcomes = []
        self.longest = 0.0

    def all(self, faults):
        """What is wrong with any of them, in words."""
        with ThreadPoolExecutor(NUM_BUCKETS) as pool:
            return [wrong for found in pool.map(self.one, faults) for wrong in found]

    def one(self, fault):
        bucket = self.free.get()
        try:
            empty(self.client, bucket)
            self.store.buckets[bucket].forget(fault)
            return [f"{fault}: {wrong}" for wrong in self.wrongs(bucket, fault)]
        finally:
            self.store.buckets[bucket].forget()
            self.free.put(bucket)

    def wrongs(self, bucket, fault):
        whole, start = self.unhindered.hashes[bucket], time.monotonic()
        try:
            digest = sharded(bucket).digest
        except Exception as err:  # noqa: BLE001 - whatever it is, is the result
            digest = None
            if not isinstance(err, OSError):
                yield f"raised {type(err).__name__}, not OSError: {err}"
        self.longest = max(self.longest, time.monotonic() - start)
        self.outcomes.append((str(fault), digest is not None, self.store.buckets[bucket].num_faults))
        if not self.store.buckets[bucket].num_faults:
            yield "that call was never made"
        seen = hashes(self.client, bucket)
        yield from self.faults_of(seen, whole, digest)
        self.store.buckets[bucket].forget()
        if sharded(bucket).digest != self.unhindered.digest:
            yield "another digest when the store was well again"
        if (after := hashes(self.client, bucket)) != whole:
            yield f"other files when the store was well again: {sorted(after.items() ^ whole.items())}"

    def faults_of(self, seen, whole, digest):
        """What is wrong with what can be seen after the fault."""
        other = [name for name, tag in seen.items() if whole.get(name) != tag and not name.startswith("plan/")]
        if other:
            yield f"half-made or other files can be seen: {other}"
        if digest not in (None, self.unhindered.digest):
            yield f"completed with another digest, {digest}"
        if DATASET in seen and (missing := whole.keys() - seen.keys()):
            yield f"{DATASET} can be seen, and not {sorted(missing)}"
        if digest is not None and seen != whole:
            yield f"completed with other files: {sorted(seen.items() ^ whole.items())}"


@pytest.fixture
def suffering(store, unhindered, record_property):
    found = Suffering(store, unhindered)
    yield found
    completed = sum(done for _, done, _ in found.outcomes)
    record_property("runs", len(found.outcomes))
    print(f"{len(found.outcomes)} runs: {completed} completed, {len(found.outcomes) - completed} raised; "
          f"the longest took {found.longest:.1f} s")  # fmt: skip


def test_the_small_run_makes_calls_of_every_kind(unhindered):
    kinds = {call.name.split()[0] for call in unhindered.calls}

    assert kinds == {"HEAD", "GET", "PUT", "POST", "LIST"}
    assert 100 <= len(unhindered.calls) <= 400


def test_a_store_that_fails_at_some_calls_loses_doubles_and_refuses_nothing(suffering, unhindered):
    some = enumerate(unhindered.calls[::CI_STRIDE])
    faults = [Fault(TROUBLES[number % 3], call, lasting=number % 5 == 4) for number, call in some]
    picture = next(call for call in unhindered.calls if call.name.startswith("GET source/"))
    faults.append(Fault("cut", picture))

    assert suffering.all(faults) == []


@pytest.mark.chaos
@pytest.mark.parametrize("how", TROUBLES)
def test_a_store_that_fails_once_at_any_call_is_asked_again(how, suffering, unhindered):
    faults = [Fault(how, call) for call in unhindered.calls]

    assert suffering.all(faults) == []
    assert [fault for fault, done, _ in suffering.outcomes if not done] == []


@pytest.mark.chaos
def test_a_store_that_fails_for_ever_from_any_call_on_loses_doubles_and_refuses_nothing(suffering, unhindered):
    faults = [Fault(TROUBLES[n % 3], call, lasting=True) for n, call in enumerate(unhindered.calls)]

    assert suffering.all(faults) == []


@pytest.mark.chaos
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for ever"])
def test_a_body_that_is_cut_short_is_never_taken_for_a_whole_one(lasting, suffering, unhindered):
    faults = [Fault("cut", call, lasting) for call in unhindered.calls if call.name.startswith("GET")]

    assert suffering.all(faults) == []
    assert [done for _, done, _ in suffering.outcomes] == [not lasting] * len(faults)


@pytest.mark.chaos
def test_a_store_that_is_busy_for_ever_is_given_up_within_half_a_minute(suffering, unhindered):
    call = next(call for call in unhindered.calls if call.name.startswith("GET source/"))
    suffering.one(Fault("busy", call, lasting=True))

    assert suffering.longest < 30


@pytest.mark.chaos
def test_a_store_that_never_answers_is_given_up_within_a_minute(store):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, start = silent.getsockname()[1], time.monotonic()
        with pytest.raises(OSError, match="AWS Error"):
            Folder(f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http").exists("file")

    assert time.monotonic() - start < 60
