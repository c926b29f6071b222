"""Memory is asked for before anything is done: what does not fit is refused and harms nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from services.searcher.types import Collection
from tests.searcher.conftest import DIMENSION, MODEL, connected, unit_vectors, upsert_request
from tests.searcher.test_store_faults import found, kind_of, write
from tests.stack import ROOT

CHILD = """
import re, resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from regionsearch.errors import RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.queries import (Query)
from services.searcher.queries import (Deletion)
from services.searcher.types import (Collection, Level, Record, StoredImage, Upsert)
from tests.searcher.conftest import MODEL, unit_vectors

WIDE = replace(MODEL, dimension=2048)
NOTHING = np.empty((0, 2048), np.float32)
SETTINGS = EmbeddedSettings(folder=Path(sys.argv[1]), check_at_start=False)
DIED = []

def limit(megabytes):
    vectors = unit_vectors(64, dimension=2048)
    vectors @ vectors.T  # takes OpenBLAS' buffer; where none is to be had it ends the process
    size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20), -1))

def write(engine, name, number, rows=256):
    records = [Record(f"{number}-{i}", f"i{number}", Level.REGION) for i in range(rows)]
    vectors = unit_vectors(rows, dimension=2048)
    engine.upsert(name, WIDE, Upsert([StoredImage(f"i{number}")], records, vectors))

def hits(engine, name):
    return len(engine.search(name, WIDE, [Query(unit_vectors(1, dimension=2048), NOTHING)])[0].hits)
"""


def child(folder: Path, script: str) -> list[str]:
    """What a process says that may use only so much memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["MALLOC_ARENA_MAX"] = "1"  # each thread's own would take address space by chance
    done = subprocess.run(
        [sys.executable, "-c", CHILD + script, str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("END")]


def test_a_write_without_enough_memory_is_refused_and_every_later_start_succeeds(tmp_path: Path) -> None:
    said = child(
        tmp_path,
        """
engine = EmbeddedEngine(SETTINGS, DIED.append)
engine.create_collection(Collection("c", WIDE))
write(engine, "c", 0)
hits(engine, "c")
limit(150)
number = 1
try:
    while number < 100:
        write(engine, "c", number)
        number += 1
except RegionSearchError as error:
    count = engine.get_collection("c").record_count
    print("END", error.kind.name, error.retry_after_s, number * 256 == count, hits(engine, "c"), DIED)
    engine.delete("c", Deletion(image_ids=("i1",)))
    print("END", count - engine.get_collection("c").record_count, DIED)
engine.close()
""",
    )
    assert said == ["END OVERLOADED 5.0 True 20 []", "END 256 []"]
    said = child(
        tmp_path,
        "engine = EmbeddedEngine(SETTINGS); print('END', hits(engine, 'c')); engine.close()",
    )
    assert said == ["END 20"]


def test_start_serves_the_collections_that_fit_into_memory(tmp_path: Path) -> None:
    child(
        tmp_path,
        """
engine = EmbeddedEngine(SETTINGS)
for name, writes in (("large", 64), ("small", 1)):
    engine.create_collection(Collection(name, WIDE))
    for number in range(writes):
        write(engine, name, number)
engine.close()
""",
    )
    said = child(
        tmp_path,
        """
limit(150)
engine = EmbeddedEngine(SETTINGS, DIED.append)
print("END", hits(engine, "small"), [one.name for one in engine.list_collections()])
for call in (lambda: hits(engine, "large"), lambda: write(engine, "large", 99)):
    try:
        call()
    except RegionSearchError as error:
        print("END", error.kind.name, "'large' does not fit" in error.message)
print("END", len(engine.list_images("large", 100, None).images), len(engine.get_records(
    "large", ["7-7"], [], masks=False, vectors=True).records))
engine.run_maintenance()
write(engine, "small", 1)
engine.delete("large", Deletion(image_ids=tuple(f"i{number}" for number in range(1, 64))))
print("END", DIED)
engine.close()
""",
    )
    refused = "END FAILED_PRECONDITION True"
    assert said == ["END 20 ['large', 'small']", refused, refused, "END 64 1", "END []"]
    again = (
        "limit(150)\nengine = EmbeddedEngine(SETTINGS)\nprint('END', hits(engine, 'large'))\nengine.close()"
    )
    assert child(tmp_path, again) == ["END 20"]


def test_the_memory_of_an_index_grows_with_its_rows() -> None:
    index = VectorIndex(4)
    sizes = []
    while len(sizes) < 6:
        index.reserve(1024)
        sizes = [segment.columns.capacity for segment in index._spare]
    assert sizes == [1024, 3072, 12288, 49152, 65536, 65536]
    assert VectorIndex(4, expected=5000)._segment(1).columns.capacity == 5000
    assert VectorIndex(4, 32, expected=5000)._segment(7).columns.capacity == 32


def test_memory_reserved_for_a_failed_write_serves_the_next(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, "before")
    index = engine._collections.find("default").index

    def refuse(missing: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(index, "_segment", refuse)
        with pytest.raises(RegionSearchError, match="not enough memory") as caught:
            write(engine, "large", regions=64)
        assert caught.value.kind is Kind.OVERLOADED
        assert index._reserved == 0
    write(engine, "large", regions=64)
    assert index._reserved == 0
    assert found(engine) == 68


async def test_calls_are_refused_by_the_memory_that_they_need() -> None:
    calls, gate = BoundedExecutor("writes", 4, 4, 100, "max_write_bytes"), threading.Event()

    def work() -> str:
        gate.wait(60)
        return "done"

    first = asyncio.create_task(calls.run(work, nbytes=1000))  # alone it may need more
    await asyncio.sleep(0)
    with pytest.raises(RegionSearchError, match="max_write_bytes") as caught:
        await calls.run(work, nbytes=1)
    assert caught.value.kind is Kind.OVERLOADED
    assert caught.value.retry_after_s
    small = asyncio.create_task(calls.run(work))
    turn = asyncio.create_task(calls.run_in_turn(work, nbytes=60))
    await asyncio.sleep(0.05)
    with pytest.raises(RegionSearchError):
        await calls.run_in_turn(work, nbytes=60)
    gate.set()
    assert [await one for one in (first, small, turn)] == ["done"] * 3
    assert (calls._bytes, calls._inside, calls._waiting_bytes) == (0, 0, 0)

    def too_much() -> None:
        raise MemoryError

    with pytest.raises(RegionSearchError) as caught:
        await calls.run(too_much)
    assert caught.value.kind is Kind.OVERLOADED
    await asyncio.to_thread(calls.close)


async def test_large_writes_beyond_the_budget_are_refused_with_a_delay_and_the_others_kept(
    settings: EmbeddedSettings,
) -> None:
    process = SearcherSettings(port=0, drain_delay_s=0, embedded=settings, max_write_bytes=3 << 20)
    rows = unit_vectors(4000)
    async with connected(process) as stub:

        async def one(number: int) -> int:
            request = upsert_request(f"image{number}", rows)
            request.vectors.CopyFrom(tensor_to_proto(rows.astype(np.float16) if number % 2 else rows))
            try:
                await stub.Upsert(request)
            except grpc.aio.AioRpcError as caught:
                error = from_rpc_error(caught)
                assert (error.kind, error.retry_after_s) == (Kind.OVERLOADED, 0.5)
                return 0
            return 1

        async def stream() -> int:
            call = stub.BulkUpsert()
            for number in range(3):
                part = upsert_request(f"part{number}", rows[:1000])
                await call.write(search_pb2.BulkUpsertRequest(batch=part))
            await call.done_writing()
            return (await call).record_count

        streamed = asyncio.create_task(stream())
        while True:
            stats = await stub.GetStats(search_pb2.GetStatsRequest())
            if stats.collections[0].image_count:
                break
        written = sum(await asyncio.gather(*map(one, range(12))))
        assert 0 < written < 12
        assert await streamed == 3000, "a stream that has begun waits for its turn"
        stats = await stub.GetStats(search_pb2.GetStatsRequest())
        assert stats.collections[0].record_count == 4000 * written + 3000


def test_a_new_collection_needs_little_memory(settings: EmbeddedSettings) -> None:
    engine = EmbeddedEngine(settings.model_copy(update={"chunk_rows": 65_536}))
    engine.create_collection(Collection("default", MODEL))
    write(engine, "image")
    (view,) = engine._collections.find("default").index.state.views
    assert view.segment.columns.capacity == 1024
    assert view.segment.vectors.nbytes == 1024 * DIMENSION * 4
    assert kind_of(lambda: engine.create_collection(Collection("default", MODEL))) is Kind.ALREADY_EXISTS
    engine.close()
