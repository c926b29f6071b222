"""A searcher with synthetic vectors, for its benchmarks."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Measure
from loadtests.launch import Process, stop_all
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, ModelIdentity, Record, StoredImage, Upsert

DIMENSION = 512
CALLERS = 32
QUERIES = 320
HITS = 10
REGIONS = 50  # of an image
MODEL = ModelIdentity("open_clip", "benchmark", "digest", DIMENSION)
MODEL_INFO = types_pb2.ModelInfo(
    family="open_clip", variant="benchmark", weights_digest="digest", dimension=DIMENSION
)
SCALE = float(os.environ.get("REGIONSEARCH_BENCH_SCALE", "1"))
"""Rows are multiplied by it: 0.02 shows in a minute that every case runs, and measures nothing."""

Vectors = NDArray[np.float32]


def scaled(count: int) -> int:
    """So many rows, or as few as `SCALE` says; whole images, and enough for an index."""
    return max(2000, int(count * SCALE) // REGIONS * REGIONS)


def in_tenth(count: int) -> NDArray[np.bool_]:
    """Which of the rows belong to images with the tag "tenth"."""
    return np.asarray(np.arange(count) // REGIONS % 10 == 0)


def clustered(count: int, seed: int) -> Vectors:
    """Unit vectors around 2000 centres, half of it noise: neighbours exist, as in real embeddings."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((2000, DIMENSION), dtype=np.float32)
    vectors = centres[rng.integers(0, len(centres), count)]
    vectors += rng.standard_normal((count, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write(engine: EmbeddedEngine, vectors: Vectors, first: int = 0, batch: int = 2000) -> None:
    """Images of 50 regions each; every tenth image has the tag "tenth"."""
    for start in range(first, first + len(vectors), batch):
        rows = vectors[start - first : start - first + batch]
        images = [
            StoredImage(f"image{number}", tags=("tenth",) if number % 10 == 0 else ())
            for number in range(start // REGIONS, -(-(start + len(rows)) // REGIONS))
        ]
        records = [
            Record(f"r{start + row}", f"image{(start + row) // REGIONS}", Level.REGION)
            for row in range(len(rows))
        ]
        engine.upsert("c", MODEL, Upsert(images, records, rows))


@contextlib.contextmanager
def filled(count: int) -> Iterator[tuple[Path, Vectors]]:
    """A data folder with so many vectors, and the vectors."""
    with tempfile.TemporaryDirectory() as folder:
        engine = EmbeddedEngine(
            EmbeddedSettings(
                folder=Path(folder), check_at_start=False, ann_above=2 * count
            )  # built when asked
        )
        engine.create_collection(Collection("c", MODEL))
        blocks = [clustered(min(100_000, count - start), start) for start in range(0, count, 100_000)]
        for number, block in enumerate(blocks):
            write(engine, block, number * 100_000)
        engine.close()
        yield Path(folder), np.concatenate(blocks)


@contextlib.contextmanager
def process(folder: Path, follow: str = "") -> Iterator[search_pb2_grpc.SearchServiceStub]:
    """The searcher as a process of its own; with an address, the read replica of the searcher there."""
    with served(folder, follow) as (stub, _):
        yield stub


@contextlib.contextmanager
def served(folder: Path, follow: str = "") -> Iterator[tuple[search_pb2_grpc.SearchServiceStub, str]]:
    """The same, with its address."""
    settings = {"embedded__folder": folder, "drain_delay_s": 0, "follow": follow}
    with tempfile.TemporaryDirectory() as files:
        server = Process("searcher", Path(files), "searcher", settings)
        try:
            address = server.start()
            with grpc.insecure_channel(address) as channel:
                yield search_pb2_grpc.SearchServiceStub(channel), address
        finally:
            stop_all([server])


def request(query: Vectors, **fields: Any) -> search_pb2.SearchRequest:
    """A search for the best ten."""
    return search_pb2.SearchRequest(
        collection="c", model=MODEL_INFO, queries=tensor_to_proto(query[np.newaxis]), page_size=HITS, **fields
    )


def throughput(stub: search_pb2_grpc.SearchServiceStub, callers: int, requests: list[Any]) -> Measure:
    """Searches a second."""

    def measure() -> float:
        with ThreadPoolExecutor(callers) as pool:
            begin = time.perf_counter()
            list(pool.map(stub.Search, requests))
            return len(requests) / (time.perf_counter() - begin)

    return measure
