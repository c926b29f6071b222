"""Near duplicates are folded and hits are mixed, in every engine, and no later page repeats any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2
from services.searcher.engine import Engine
from services.searcher.queries import Hit, Query
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher import clusters
from tests.searcher.conftest import failing, unit_vectors
from tests.searcher.engines import engine
from tests.searcher.random_ops import MODEL, following
from tests.searcher.test_pagination import filled

__all__ = ["engine"]  # the fixture
BURSTS, SHOTS = 5, 4


def directions(count: int, dimension: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).standard_normal((dimension, dimension)))[0][:count]


@pytest.fixture
def bursts(engine: Engine) -> Engine:
    """Four directions with a burst in each, whose shots differ by a degree; the best burst is b0."""
    axes = directions(4, 4).astype(np.float32)
    vectors = [
        axes[burst] + 0.01 * shot * axes[(burst + 1) % 4] for burst in range(4) for shot in range(SHOTS)
    ]
    unit = np.array(vectors, np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    ids = [f"b{burst}-{shot}" for burst in range(4) for shot in range(SHOTS)]
    images = [StoredImage(name) for name in ids]
    records = [Record(f"{name}-r", name, Level.REGION) for name in ids]
    engine.upsert("c", MODEL, Upsert(images, records, unit))
    return engine


def pages(engine: Engine, query: Query, model=MODEL, name: str = "c") -> Iterator[list[Hit]]:
    while True:
        (page,) = engine.search(name, model, [query])
        yield list(page.hits)
        if not page.more:
            return
        query = following(query, page)


def query_for(**options: object) -> Query:
    axes = directions(4, 4).astype(np.float32)
    wanted = np.array([[0.7, 0.5, 0.4, 0.3]], np.float32) @ axes
    return Query(wanted, wanted[:0], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_burst_is_one_hit_that_counts_the_others(bursts: Engine, grouped: bool) -> None:
    query = query_for(limit=3, fold_similarity=0.99, group_by_image=grouped)
    found = list(pages(bursts, query))
    assert [len(page) for page in found] == [3, 1]
    hits = [hit for page in found for hit in page]
    assert [hit.record.record_id[:2] for hit in hits] == ["b0", "b1", "b2", "b3"]
    assert [hit.folded for hit in hits] == [SHOTS - 1] * 4
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    whole = [hit for page in pages(bursts, replace(query, fold_similarity=None)) for hit in page]
    firsts = {hit.record.record_id[:2]: hit.record.record_id for hit in reversed(whole)}
    assert [hit.record.record_id for hit in hits] == [firsts[name] for name in ("b0", "b1", "b2", "b3")]


def test_equal_vectors_fold_at_a_similarity_of_one(engine: Engine) -> None:
    vectors = np.repeat(directions(2, 4).astype(np.float32), 3, axis=0)
    images = [StoredImage("i")]
    engine.upsert("c", MODEL, Upsert(images, [Record(f"r{n}", "i", Level.REGION) for n in range(6)], vectors))
    (hits,) = pages(engine, replace(query_for(), fold_similarity=1.0))
    assert [(hit.record.record_id, hit.folded) for hit in hits] in (
        [("r0", 2), ("r3", 2)],
        [("r3", 2), ("r0", 2)],
    )


def test_mixed_hits_follow_maximal_marginal_relevance_over_all_pages(bursts: Engine) -> None:
    plain = [hit for page in pages(bursts, query_for(limit=50)) for hit in page]
    ids = [hit.record.record_id for hit in plain]
    stored = bursts.get_records("c", ids, [], masks=False, vectors=True)
    by_id = dict(zip((r.record_id for r in stored.records), stored.vectors, strict=True))  # type: ignore[arg-type]
    vectors = np.array([by_id[name] / np.linalg.norm(by_id[name]) for name in ids])
    alike = vectors @ vectors.T
    left, expected = list(range(len(ids))), []
    while left:
        best = max(
            left,
            key=lambda row: 0.5 * plain[row].score - 0.5 * max((alike[row, e] for e in expected), default=0),
        )
        expected.append(best)
        left.remove(best)
    found = [hit for page in pages(bursts, query_for(limit=3, diversity=0.5)) for hit in page]
    assert [hit.record.record_id for hit in found] == [ids[row] for row in expected]
    assert [hit.record.record_id[:2] for hit in found[:4]] == ["b0", "b1", "b2", "b3"]


def test_later_pages_over_an_approximate_index_show_no_duplicates_of_earlier_ones(tmp_path: Path) -> None:
    made = clusters.clustered(3000)
    engine = filled(tmp_path, made, "ivf")
    query = Query(made[:1], made[:0], limit=100, fold_similarity=0.95, effort=0.01)
    found = [hit for page in pages(engine, query, clusters.MODEL) for hit in page]
    ids = [hit.record.record_id for hit in found]
    assert len(set(ids)) == len(ids) > 100
    stored = engine.get_records("c", ids, [], masks=False, vectors=True)
    unit = stored.vectors / np.linalg.norm(stored.vectors, axis=1, keepdims=True)  # type: ignore[arg-type]
    alike = unit @ unit.T
    np.fill_diagonal(alike, 0)
    assert alike.max() < 0.95
    engine.close()


async def test_wrong_values_are_refused_by_name(stub) -> None:
    queries = tensor_to_proto(unit_vectors(1))
    for field, wrong in (
        ("fold_similarity", 0.0),
        ("fold_similarity", 1.5),
        ("diversity", -0.5),
        ("diversity", float("nan")),
    ):
        request = search_pb2.SearchRequest(collection="default", queries=queries, **{field: wrong})
        request.model.dimension = 16
        assert (await failing(stub.Search(request)))[1] == field
