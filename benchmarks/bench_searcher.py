"""The searcher against plain FAISS: many callers, filters, writes beside reads, cold starts."""

from __future__ import annotations

import contextlib
import functools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, Measure, Pair, constant
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.searcher.embedded.codes import build_codes, train_codec, training_sample
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.ivf import build_ivf
from services.searcher.embedded.native import faiss, selector
from services.searcher.embedded.rewriting import Rewrite
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Level,
    ModelIdentity,
    Record,
    StoredImage,
    Upsert,
)

DIMENSION = 512
CALLERS = 32
QUERIES = 320
HITS = 10
REGIONS = 50  # of an image
MODEL = ModelIdentity("open_clip", "benchmark", "digest", DIMENSION)
MODEL_INFO = types_pb2.ModelInfo(
    family="open_clip", variant="benchmark", weights_digest="digest", dimension=DIMENSION
)
Vectors = NDArray[np.float32]


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
        engine = EmbeddedEngine(EmbeddedSettings(folder=Path(folder), check_at_start=False))
        engine.create_collection(Collection("c", MODEL))
        blocks = [clustered(min(100_000, count - start), start) for start in range(0, count, 100_000)]
        for number, block in enumerate(blocks):
            write(engine, block, number * 100_000)
        engine.close()
        yield Path(folder), np.concatenate(blocks)


@contextlib.contextmanager
def process(folder: Path) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    """The searcher as a process of its own."""
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "services.searcher", "--port", "0", "--port-file", str(port_file)]
    command += ["--embedded.folder", str(folder), "--drain-delay-s", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not port_file.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the searcher ended with code {server.returncode}")
            time.sleep(0.01)
        with grpc.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}") as channel:
            yield search_pb2_grpc.SearchServiceStub(channel)
    finally:
        server.terminate()
        server.wait()


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


def loop(index: Any, queries: Vectors, **parameters: Any) -> Measure:
    """One FAISS call a query: searches a second."""

    def measure() -> float:
        begin = time.perf_counter()
        for query in queries:
            index.search(query[np.newaxis], HITS, **parameters)
        return len(queries) / (time.perf_counter() - begin)

    return measure


def against_faiss(count: int, callers: int, filtered: bool = False) -> Callable[[], Any]:
    """Ours over gRPC against a loop over `IndexFlatIP` in process."""

    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        with filled(count) as (folder, vectors), process(folder) as stub:
            index = faiss.IndexFlatIP(DIMENSION)
            index.add(vectors)
            queries = clustered(QUERIES if callers > 1 else 40, seed=99)
            fields: dict[str, Any] = {}
            parameters: dict[str, Any] = {}
            if filtered:
                fields["filter"] = search_pb2.Filter(tags=["tenth"])
                kept = np.arange(count) // REGIONS % 10 == 0
                parameters["params"] = faiss.SearchParameters(sel=selector(kept))
            requests = [request(query, **fields) for query in queries]
            yield Pair(throughput(stub, callers, requests), loop(index, queries[:40], **parameters))

    return prepare


@contextlib.contextmanager
def beside_writes() -> Iterator[Pair]:
    """Median latency of one caller while another writes 200 images of 50 regions a minute, against alone."""
    with filled(100_000) as (folder, _), process(folder) as stub:
        queries = [request(query) for query in clustered(100, seed=98)]
        fresh = clustered(REGIONS, seed=97)
        turn = iter(range(10_000_000))

        def p50() -> float:
            times = []
            for query in queries:
                begin = time.perf_counter()
                stub.Search(query)
                times.append(time.perf_counter() - begin)
            return 1000 * statistics.median(times)

        def written() -> float:
            stop = threading.Event()

            def writer() -> None:
                while not stop.wait(0.3):
                    number = next(turn)
                    stub.Upsert(
                        search_pb2.UpsertRequest(
                            collection="c",
                            model=MODEL_INFO,
                            images=[search_pb2.StoredImage(image_id=f"new{number}")],
                            records=[
                                search_pb2.Record(
                                    record_id=f"new{number}-{row}",
                                    image_id=f"new{number}",
                                    level=search_pb2.LEVEL_REGION,
                                )
                                for row in range(REGIONS)
                            ],
                            vectors=tensor_to_proto(fresh),
                        )
                    )

            thread = threading.Thread(target=writer)
            thread.start()
            try:
                return p50()
            finally:
                stop.set()
                thread.join()

        yield Pair(written, p50)


def write_rate(callers: int) -> Callable[[], Any]:
    """Vectors a second that are on disk, in images of 50 regions; the reference is a single caller."""

    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        with tempfile.TemporaryDirectory() as folder:
            engine = EmbeddedEngine(EmbeddedSettings(folder=Path(folder)))
            engine.create_collection(Collection("c", MODEL))
            vectors = clustered(REGIONS, seed=3)
            turn = iter(range(10_000_000))

            def rate(threads: int) -> Measure:
                def one(_: int) -> None:
                    write(engine, vectors, next(turn) * REGIONS)

                def measure() -> float:
                    with ThreadPoolExecutor(threads) as pool:
                        begin = time.perf_counter()
                        list(pool.map(one, range(100)))
                        return 100 * REGIONS / (time.perf_counter() - begin)

                return measure

            yield Pair(rate(callers), rate(1))
            engine.close()

    return prepare


@contextlib.contextmanager
def cold_start() -> Iterator[Pair]:
    """Seconds from the start of the process to its first answer over a million vectors."""
    with filled(1_000_000) as (folder, vectors):
        query = request(vectors[5])

        def measure() -> float:
            begin = time.perf_counter()
            with process(folder) as stub:
                stub.Search(query)
                return time.perf_counter() - begin

        yield Pair(measure, constant(10.0))


def recall_of(kind: str) -> Callable[[], Any]:
    """Recall@10 of an approximate index against exact search, for queries that are no stored rows."""

    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        with filled(131_072) as (folder, _):
            engine = EmbeddedEngine(EmbeddedSettings(folder=folder, check_at_start=False))
            segments = [view.segment for view in engine._open["c"].index.state.views]
            rewrite = Rewrite(segments, 0)
            if kind == "ivf":
                found = build_ivf(rewrite, 0.98, clustered(128, seed=55)).recall
            else:
                spec = CodeSpec(CodeMethod.PCA_ROTATION, 256)
                found = build_codes(
                    rewrite, train_codec(spec, training_sample(rewrite)), spec.rerank_factor
                ).recall
            assert found is not None
            yield Pair(constant(found))
            engine.close()

    return prepare


def cases() -> list[Case]:
    """All comparisons of the searcher."""
    rate = functools.partial(Case, unit="searches/s", better="higher")
    return [
        rate(
            "searcher: 100k, 32 callers / FAISS, call by call",
            prepare=against_faiss(100_000, 32),
            target=3.0,
        ),
        rate("searcher: 100k, 1 caller / FAISS, call by call", prepare=against_faiss(100_000, 1)),
        rate(
            "searcher: 100k, 32 callers, a tenth passes / FAISS with selector",
            prepare=against_faiss(100_000, 32, filtered=True),
        ),
        Case("searcher: p50 beside writes / alone", "ms", beside_writes, target=1 / 1.5),
        Case("searcher: writes of 8 callers / of one", "vectors/s", write_rate(8), better="higher"),
        Case(
            "searcher: recall@10 of IVF at 131k",
            "recall",
            recall_of("ivf"),
            better="higher",
            runs=1,
            slow=True,
        ),
        Case(
            "searcher: recall@10 of 256-bit codes at 131k",
            "recall",
            recall_of("codes"),
            better="higher",
            runs=1,
            slow=True,
        ),
        rate(
            "searcher: 1M, 32 callers / FAISS, call by call",
            prepare=against_faiss(1_000_000, 32),
            target=3.0,
            slow=True,
        ),
        Case("searcher: cold start of 1M / 10 s", "s", cold_start, target=1.0, runs=3, slow=True),
    ]
