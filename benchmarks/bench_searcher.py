"""The searcher against FAISS: callers, filters, reads during writes, starts; for others see `compare`.

`REGIONSEARCH_BENCH_SCALE=0.02 python -m benchmarks --only searcher` shows in minutes that every case runs.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Case, Measure, Pair, constant
from benchmarks.searcher_rig import (
    CALLERS,
    DIMENSION,
    HITS,
    MODEL,
    MODEL_INFO,
    QUERIES,
    REGIONS,
    SCALE,
    Vectors,
    clustered,
    filled,
    in_tenth,
    process,
    request,
    scaled,
    served,
    throughput,
    write,
)
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.faiss_compat import faiss, selector
from services.searcher.embedded.index.approximate import ApproximateSegment
from services.searcher.embedded.index.binary import build_codes, train_codec, training_sample
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import FOLDER as INDEX_FOLDER
from services.searcher.embedded.index.inverted_lists import build_ivf
from services.searcher.embedded.index.recall import RecallEvaluator, recall_evaluators, tune
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection


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
        with filled(scaled(count)) as (folder, vectors), process(folder) as stub:
            index = faiss.IndexFlatIP(DIMENSION)
            index.add(vectors)
            queries = clustered(QUERIES if callers > 1 else 40, seed=99)
            fields: dict[str, Any] = {}
            parameters: dict[str, Any] = {}
            if filtered:
                fields["filter"] = search_pb2.Filter(tags=["tenth"])
                parameters["params"] = faiss.SearchParameters(sel=selector(in_tenth(len(vectors))))
            requests = [request(query, **fields) for query in queries]
            yield Pair(throughput(stub, callers, requests), loop(index, queries[:40], **parameters))

    return prepare


@contextlib.contextmanager
def during_writes() -> Iterator[Pair]:
    """Median latency of one caller while another writes 200 images of 50 regions a minute, against alone."""
    with filled(scaled(100_000)) as (folder, _), process(folder) as stub:
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
                    stub.Upsert(new_image(next(turn), fresh))

            thread = threading.Thread(target=writer)
            thread.start()
            try:
                return p50()
            finally:
                stop.set()
                thread.join()

        yield Pair(written, p50)


@contextlib.contextmanager
def replication_lag() -> Iterator[Pair]:
    """Median time from the acknowledgement of a write until a read replica shows it, against its writer."""
    with (
        filled(scaled(100_000)) as (folder, _),
        tempfile.TemporaryDirectory() as copy,
        served(folder) as (writer, address),
        process(Path(copy), follow=address) as replica,
    ):
        turn, fresh = iter(range(10_000_000)), clustered(REGIONS, seed=97)
        query = clustered(1, seed=98)[0]

        def seen(stub: search_pb2_grpc.SearchServiceStub) -> Measure:
            def measure() -> float:
                times = []
                for _ in range(50):
                    seq = writer.Upsert(new_image(next(turn), fresh)).seq
                    begin = time.perf_counter()
                    stub.Search(request(query, min_seq=seq))
                    times.append(time.perf_counter() - begin)
                return 1000 * statistics.median(times)

            return measure

        yield Pair(seen(replica), seen(writer))


def new_image(number: int, vectors: Vectors) -> search_pb2.UpsertRequest:
    """An image of 50 regions that is not there yet."""
    return search_pb2.UpsertRequest(
        collection="c",
        model=MODEL_INFO,
        images=[search_pb2.StoredImage(image_id=f"new{number}")],
        records=[
            search_pb2.Record(
                record_id=f"new{number}-{row}", image_id=f"new{number}", level=search_pb2.LEVEL_REGION
            )
            for row in range(REGIONS)
        ],
        vectors=tensor_to_proto(vectors),
    )


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
    with filled(scaled(1_000_000)) as (folder, vectors):
        query = request(vectors[5])

        def measure() -> float:
            begin = time.perf_counter()
            with process(folder) as stub:
                stub.Search(query)
                return time.perf_counter() - begin

        yield Pair(measure, constant(10.0))


@contextlib.contextmanager
def restart_with_ivf() -> Iterator[Pair]:
    """Seconds until 262k vectors are served by an approximate index: with its file, and without."""
    count = scaled(262_144)
    with filled(count) as (folder, _):
        settings = EmbeddedSettings(
            folder=folder, chunk_rows=count // 4, ann_above=count // 2, ann_rows=count // 4 * 4
        )

        def start() -> float:
            begin = time.perf_counter()
            engine = EmbeddedEngine(settings)
            engine.run_maintenance()
            elapsed = time.perf_counter() - begin
            segments = engine.stats("c")[0].segments
            engine.close()
            if all(segment.recall is None for segment in segments):
                raise RuntimeError(f"no approximate index was made: {segments}")
            return elapsed

        def anew() -> float:
            shutil.rmtree(folder / INDEX_FOLDER, ignore_errors=True)
            return start()  # and leaves the files for the other side's next turn

        anew()
        yield Pair(start, anew)


def recall_of(kind: str) -> Callable[[], Any]:
    """Recall@10 of an approximate index against exact search, for queries that are no stored rows."""

    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        with filled(scaled(131_072)) as (folder, _):
            engine = EmbeddedEngine(EmbeddedSettings(folder=folder, check_at_start=False))
            segments = [view.segment for view in engine._collections.find("c").index.state.views]
            compaction = CompactionInput(segments, 0)
            segment: ApproximateSegment
            if kind == "ivf":
                segment = build_ivf(compaction)
            else:
                spec = CodeSpec(CodeMethod.PCA_ROTATION, 256)
                segment = build_codes(
                    compaction, train_codec(spec, training_sample(compaction)), spec.rerank_factor
                )
            tune(segment, recall_evaluators(compaction, {}), 0.98)
            yield Pair(constant(RecallEvaluator(compaction, clustered(128, seed=55)).recall(segment)))
            engine.close()

    return prepare


def cases() -> list[Case]:
    """All comparisons of the searcher; a scaled run says so in every name."""
    suffix = "" if SCALE == 1 else f" (scale {SCALE:g})"
    found = [*_against_faiss(), *_alone()]
    return [
        replace(case, name=f"searcher: {case.name}{suffix}", runs=case.runs if SCALE == 1 else 1)
        for case in found
    ]


_rate = functools.partial(Case, unit="searches/s", better="higher")
_slow_recall = functools.partial(Case, unit="recall", better="higher", runs=1, slow=True)


def _against_faiss() -> list[Case]:
    return [
        _rate("100k, 32 callers / FAISS, call by call", prepare=against_faiss(100_000, CALLERS), target=3.0),
        _rate("100k, 1 caller / FAISS, call by call", prepare=against_faiss(100_000, 1)),
        _rate(
            "100k, 32 callers, a tenth passes / FAISS with selector",
            prepare=against_faiss(100_000, CALLERS, filtered=True),
        ),
        _rate(
            "1M, 32 callers / FAISS, call by call",
            prepare=against_faiss(1_000_000, CALLERS), target=3.0, slow=True,
        ),
        _rate("1M, 1 caller / FAISS, call by call", prepare=against_faiss(1_000_000, 1), slow=True),
        _rate(
            "1M, 32 callers, a tenth passes / FAISS with selector",
            prepare=against_faiss(1_000_000, CALLERS, filtered=True), slow=True,
        ),
    ]  # fmt: skip


def _alone() -> list[Case]:
    return [
        Case("p50 during writes / alone", "ms", during_writes, target=1 / 1.5),
        Case("write seen on a read replica / on its writer", "ms", replication_lag, slow=True),
        Case("writes of 8 callers / of one", "vectors/s", write_rate(8), better="higher"),
        _slow_recall("recall@10 of IVF at 131k", prepare=recall_of("ivf")),
        _slow_recall("recall@10 of 256-bit codes at 131k", prepare=recall_of("codes")),
        Case("restart with IVF files at 262k / without", "s", restart_with_ivf, runs=3, slow=True),
        Case("cold start of 1M / 10 s", "s", cold_start, target=1.0, runs=3, slow=True),
    ]
