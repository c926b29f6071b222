"""The searcher's index of a million vectors against exact FAISS: words, regions and filters, on one thread.

Without processes and RPCs around it: what one query costs in the index, its candidates scored exactly.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Case, Measure, Pair, constant
from benchmarks.searcher_rig import SCALE, Vectors, scaled
from services.searcher.embedded import faiss_compat
from services.searcher.embedded.faiss_compat import faiss, selector
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.filters import CompiledFilter
from services.searcher.embedded.index.index_files import IndexCache
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.vector_index import VectorIndex, VectorQuery
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.planning import Planner
from services.searcher.embedded.queries.candidate_source import exact_scores
from services.searcher.embedded.rows import Rows
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, ModelIdentity

_ROWS = 1_000_000
_DIMENSION = 256
_DIRECTIONS = 24
_BATCH = 50_000
_QUERIES = 100
_TURN = 20
_HITS = 10
_ASKED = 37  # rows, for a page of 20
_PARTS = (None, 0.001, 0.01, 0.1, 0.5)


def _unit(vectors: Any) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def clustered_rows(
    count: int, seed: int, dimension: int = _DIMENSION, directions: int = _DIRECTIONS
) -> Vectors:
    """Rows in clusters, with most of their variance in few directions and none in half of them, as images."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    axes, _ = np.linalg.qr(fixed.standard_normal((dimension // 2, directions)))
    centres = _unit(fixed.standard_normal((1000, directions), np.float32))
    near = centres[rng.integers(0, len(centres), count)]
    near = _unit(near + 0.8 * _unit(rng.standard_normal(near.shape, np.float32)))
    found = np.zeros((count, dimension), np.float32)
    noise = _unit(rng.standard_normal((count, dimension // 2), np.float32))
    found[:, : dimension // 2] = near @ axes.T.astype(np.float32) + 0.3 * noise
    return _unit(found).astype(np.float16).astype(np.float32)


def queries_for(kind: str, rows: Vectors) -> Vectors:
    """Regions are rows with noise; words are blends of rows, with a large part that no row has."""
    rng = np.random.default_rng(5)
    noise = _unit(rng.standard_normal((_QUERIES, rows.shape[1])))
    if kind == "regions":
        return _unit(rows[rng.integers(0, len(rows), _QUERIES)] + 0.75 * noise)
    blends = _unit(rows[rng.integers(0, len(rows), (_QUERIES, 4))].sum(axis=1))
    apart = np.zeros(rows.shape[1])
    apart[-8:] = 1.0 / np.sqrt(8)
    return _unit(blends + 0.6 * noise + 1.5 * apart)


@dataclass
class _Bench:
    index: VectorIndex
    flat: Any
    queries: dict[str, Vectors]
    area: Any

    def ours(self, query: Vectors, filter_: CompiledFilter) -> list[int]:
        """Rows of the best ten."""
        request = VectorQuery(query[np.newaxis], filter_.select(self.index.state.views), _ASKED)
        parts = self.index.fetch([request])[0]
        scores = np.concatenate([exact_scores(p.segment, p.rows, request.vectors)[:, 0] for p in parts])
        rows = np.concatenate([p.segment.columns.record_rowid[p.rows] for p in parts]) - 1
        best: list[int] = rows[np.argsort(-scores)[:_HITS]].tolist()
        return best

    def theirs(self, query: Vectors, parameters: Any) -> list[int]:
        """The same of FAISS."""
        rows = self.flat.search(query[np.newaxis], _ASKED, params=parameters)[1][0]
        best: list[int] = rows[:_HITS].tolist()
        return best


@functools.cache
def _bench() -> _Bench:
    """Built once for all cases; it stays until the process ends."""
    faiss.omp_set_num_threads(1)
    faiss_compat.take_over(1)
    count = scaled(_ROWS)
    folder = tempfile.TemporaryDirectory()
    index, flat = VectorIndex(_DIMENSION), faiss.IndexFlatIP(_DIMENSION)
    settings = EmbeddedSettings(ann_above=1, ann_rows=count // 5)
    planner = Planner(settings, SearchThreads(), None, IndexCache(Path(folder.name) / "indexes"))
    planner.folder = folder  # type: ignore[attr-defined]  # stays as long as the planner
    collection = OpenCollection(1, Collection("c", ModelIdentity("f", "v", "d", _DIMENSION)), index)
    area = np.random.default_rng(3).permutation(count)
    some: list[Vectors] = []
    for start in range(0, count, _BATCH):
        vectors = clustered_rows(min(_BATCH, count - start), start)
        some.append(vectors[: 50_000 // (1 + count // _BATCH)])
        flat.add(vectors)
        number = np.arange(start, start + len(vectors))
        zeros = np.zeros(len(vectors), np.float32)
        rows = Rows(
            number + 1, number // 50, np.full(len(vectors), 2, np.uint8), area[number], zeros, zeros,
            np.zeros(len(vectors), np.int64), vectors,
        )  # fmt: skip
        index.add(rows, np.ones(len(vectors), np.int64))
        while (plan := planner.plan(collection, 0)) is not None:
            sources, build = plan
            index.replace(sources, [build(CompactionInput(sources, 0))])
    kept = np.concatenate(some)
    made = _Bench(index, flat, {kind: queries_for(kind, kept) for kind in ("words", "regions")}, area)
    for queries in made.queries.values():  # live queries, and what maintenance does of them
        live = _unit(queries + 0.05 * np.random.default_rng(1).standard_normal(queries.shape))
        index.live.note(live, flat.search(live, 1)[0][:, 0])
    while planner.tune(collection) is not None:
        pass
    return made


@contextlib.contextmanager
def _prepare(kind: str, part: float | None, *, recall: bool) -> Iterator[Pair]:
    bench = _bench()
    queries, count = bench.queries[kind], len(bench.area)
    wanted, parameters = NO_FILTER, None
    if part is not None:
        wanted = Filter(max_area=max(20, int(part * count)) - 1)
        parameters = faiss.SearchParameters(sel=selector(bench.area <= wanted.max_area))
    compiled = CompiledFilter(1, filter=wanted)
    if recall:
        found = [
            len({*bench.ours(query, compiled)} & {*bench.theirs(query, parameters)}) / _HITS
            for query in queries
        ]
        yield Pair(constant(float(np.mean(found))))
        return

    def timed(search: Any, how: Any) -> Measure:
        def measure() -> float:
            begin = time.thread_time()
            for query in queries[:_TURN]:
                search(query, how)
            return (time.thread_time() - begin) / _TURN * 1000.0

        return measure

    bench.ours(queries[0], compiled)
    yield Pair(timed(bench.ours, compiled), timed(bench.theirs, parameters))


def cases() -> list[Case]:
    """Milliseconds of CPU a query, and recall."""
    suffix = "" if SCALE == 1 else f" (scale {SCALE:g})"
    found: list[Case] = []
    for kind in ("words", "regions"):
        for part in _PARTS:
            chosen = "no filter" if part is None else f"a filter of {part:.1%}"
            name = f"index: 1M x {_DIMENSION}, {kind}, {chosen}"
            target = None if part == 0.001 else 1.0
            time_ = functools.partial(_prepare, kind, part, recall=False)
            recall = functools.partial(_prepare, kind, part, recall=True)
            found.append(Case(f"{name}{suffix} / FAISS flat", "ms", time_, target=target, slow=True))
            found.append(
                Case(f"{name}, recall@10{suffix}", "recall", recall, better="higher", runs=1, slow=True)
            )
    return found
