"""Millions of vectors on one machine: how they are written, what they take, and how they are searched.

Usage: `python -m benchmarks.large_collection write FOLDER --rows 10000000`, which goes on where an earlier
run ended, then `python -m benchmarks.large_collection search FOLDER`. Both append what they measure to
FOLDER/figures.jsonl. The vectors are those of `bench_index` at 512 dimensions. While they are written, the
true neighbours of the queries are found by exact products, for each filter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks import bench_index
from benchmarks.searcher_rig import CALLERS, DIMENSION, HITS, MODEL, REGIONS, Vectors, request, throughput
from loadtests.launch import Process, stop_all
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.faiss_compat import product, take_over
from services.searcher.engine import upsert_patiently
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, Record, StoredImage, Upsert

BLOCK = 50_000
BATCH = 2000
ANN_ROWS = 524_288

EVERY = {"all": 1, "half": 2, "tenth": 10, "hundredth": 100, "thousandth": 1000}
"""A tag of every so many images."""

KINDS = ("words", "regions")
DIRECTIONS = 48


def rows_of(block: int) -> Vectors:
    """The vectors of the block that begins with this row."""
    return bench_index.clustered_rows(BLOCK, block, DIMENSION, DIRECTIONS)


def queries() -> Vectors:
    """A hundred words and a hundred regions, from the first block."""
    rows = rows_of(0)
    return np.concatenate([bench_index.queries_for(kind, rows) for kind in KINDS])


class Truth:
    """The best rows of each query and filter, among those seen so far.

    Args:
        path: Where it is kept between two runs.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._queries = path, queries()
        shape = (len(EVERY), len(self._queries), HITS)
        self.rows, self.scores, self.seen = np.full(shape, -1), np.full(shape, -np.inf, np.float32), 0
        if path.exists():
            with np.load(path) as kept:
                self.rows, self.scores, self.seen = kept["rows"], kept["scores"], int(kept["seen"])

    def add(self, vectors: Vectors) -> None:
        """Takes the next rows."""
        scores = product(self._queries, vectors)
        numbers = np.arange(self.seen, self.seen + len(vectors))
        for place, every in enumerate(EVERY.values()):
            chosen = np.flatnonzero(numbers // REGIONS % every == 0)
            known = np.hstack([self.scores[place], scores[:, chosen]])
            rows = np.hstack([self.rows[place], np.broadcast_to(numbers[chosen], (len(scores), len(chosen)))])
            best = np.argpartition(-known, HITS, axis=1)[:, :HITS]
            self.scores[place] = np.take_along_axis(known, best, axis=1)
            self.rows[place] = np.take_along_axis(rows, best, axis=1)
        self.seen += len(vectors)

    def save(self) -> None:
        """Keeps it for the next run."""
        part = self._path.with_suffix(".part.npz")
        np.savez(part, rows=self.rows, scores=self.scores, seen=self.seen)
        part.replace(self._path)


def note(folder: Path, **figures: Any) -> None:
    """Prints figures, and appends them to the file."""
    line = json.dumps({"at": time.strftime("%FT%T"), **figures})
    print(line, flush=True)
    with (folder / "figures.jsonl").open("a") as file:
        file.write(line + "\n")


def memory(process: int | None = None) -> dict[str, int]:
    """Megabytes of a process: of its own, and of files that are mapped and may be dropped."""
    found = psutil.Process(process).memory_info()
    return {"own_mb": (found.rss - found.shared) >> 20, "mapped_mb": found.shared >> 20}


def disk(folder: Path) -> int:
    """Megabytes of all files."""
    sizes: dict[int, int] = {}  # by inode: files of merged segments are linked
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values()) >> 20


def write(folder: Path, rows: int, ann_rows: int, minutes: float, most_disk_gb: float) -> None:
    """Writes rows until there are so many, or time or disk space is used up."""
    take_over(1)
    end, store = time.monotonic() + 60 * minutes, folder / "store"
    engine = EmbeddedEngine(EmbeddedSettings(folder=store, ann_rows=ann_rows, check_at_start=False))
    if not engine.list_collections():
        engine.create_collection(Collection("c", MODEL))
    truth = Truth(folder / "truth.npz")
    held = engine.get_collection("c").record_count
    begin, begun, peak = time.monotonic(), held, 0
    while max(held, truth.seen) < rows and time.monotonic() < end:
        start = min(held, truth.seen) // BLOCK * BLOCK
        vectors = rows_of(start)
        if truth.seen <= start:
            truth.add(vectors)
            truth.save()
        for first in range(held - start, BLOCK, BATCH):
            upsert(engine, start + first, vectors[first : first + BATCH])
        held = max(held, start + BLOCK)
        peak = max(peak, memory()["own_mb"])
        if held % (10 * BLOCK) == 0:
            used = disk(folder)
            note(
                folder, what="write", rows=held, disk_mb=used, peak_own_mb=peak,
                rows_per_s=round((held - begun) / (time.monotonic() - begin)), segments=segments(engine),
                **memory(),
            )  # fmt: skip
            if used > most_disk_gb * 1024 or shutil.disk_usage(folder).free < 8 << 30:
                break
    began = time.monotonic()
    while time.monotonic() < end and unindexed(engine) > ann_rows:
        time.sleep(1)
    note(
        folder, what="written", rows=held, seconds=round(time.monotonic() - begin),
        indexing_s=round(time.monotonic() - began), disk_mb=disk(folder), peak_own_mb=peak,
        segments=segments(engine), **memory(),
    )  # fmt: skip
    engine.close()


def upsert(engine: EmbeddedEngine, first: int, vectors: Vectors) -> None:
    """Images of 50 regions, with the tags of `EVERY`."""
    tags = [(tag, every) for tag, every in EVERY.items() if every > 1]
    images = [
        StoredImage(f"image{number}", tags=tuple(tag for tag, every in tags if number % every == 0))
        for number in range(first // REGIONS, (first + len(vectors)) // REGIONS)
    ]
    records = [
        Record(f"r{row}", f"image{row // REGIONS}", Level.REGION)
        for row in range(first, first + len(vectors))
    ]
    upsert_patiently(engine, "c", MODEL, Upsert(images, records, vectors))


def segments(engine: EmbeddedEngine) -> list[tuple[str, int]]:
    """Index and rows of each segment; flat ones together."""
    found = engine.stats("c")[0].segments
    flat = sum(segment.record_count for segment in found if segment.recall is None)
    return [("flat", flat), *((s.index, s.record_count) for s in found if s.recall is not None)]


def unindexed(engine: EmbeddedEngine) -> int:
    """Rows without an index."""
    return dict(segments(engine))["flat"]


@contextlib.contextmanager
def served(folder: Path, ann_rows: int) -> Iterator[tuple[search_pb2_grpc.SearchServiceStub, int, float]]:
    """The searcher as a process: its stub, its process id, and the seconds until its first answer."""
    settings = {"embedded__folder": folder / "store", "embedded__ann_rows": ann_rows, "drain_delay_s": 0}
    server = Process("searcher", folder, "searcher", settings, start_s=3600)
    try:
        begin = time.monotonic()
        with grpc.insecure_channel(server.start()) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            stub.Search(request(queries()[0]))
            assert server.process is not None
            yield stub, server.process.pid, time.monotonic() - begin
    finally:
        stop_all([server])


def search(folder: Path, ann_rows: int) -> None:
    """Start, memory, disk, latency of one caller, rate of 32, and recall, without and with filters."""
    asked, truth = queries(), Truth(folder / "truth.npz")
    with served(folder, ann_rows) as (stub, process, start_s):
        note(
            folder,
            what="start",
            rows=truth.seen,
            start_s=round(start_s, 1),
            disk_mb=disk(folder),
            **memory(process),
        )
        for place, tag in enumerate(EVERY):
            fields = {} if tag == "all" else {"filter": search_pb2.Filter(tags=[tag])}
            for number, kind in enumerate(KINDS):
                chosen = slice(100 * number, 100 * (number + 1))
                requests = [request(query, **fields) for query in asked[chosen]]
                stub.Search(requests[0])
                times, recalls = [], []
                for one, true in zip(requests, truth.rows[place][chosen].tolist(), strict=True):
                    began = time.perf_counter()
                    answer = stub.Search(one)
                    times.append(1000 * (time.perf_counter() - began))
                    hits = {int(hit.record.record_id[1:]) for hit in answer.results[0].hits}
                    recalls.append(len(hits & set(true)) / HITS)
                rate = throughput(stub, CALLERS, requests * 3)()
                note(
                    folder, what="search", kind=kind, filter=tag, recall=round(statistics.mean(recalls), 4),
                    p50_ms=round(statistics.median(times), 2), callers32_per_s=round(rate, 1),
                    p95_ms=round(float(np.quantile(times, 0.95)), 2), **memory(process),
                )  # fmt: skip


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "search"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ann-rows", type=int, default=ANN_ROWS)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--most-disk-gb", type=float, default=64.0)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.what == "write":
        write(asked.folder, asked.rows, asked.ann_rows, asked.minutes, asked.most_disk_gb)
    else:
        search(asked.folder, asked.ann_rows)


if __name__ == "__main__":
    main()
