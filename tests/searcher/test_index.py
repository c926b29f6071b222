"""Filters, large counts and ties on every kind of segment; recall of the approximate ones; nobody waits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.searcher.embedded import faiss_compat
from services.searcher.embedded.index import nearest
from services.searcher.embedded.index.binary import Codec, CodeSegment, build_codes, train_codec
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.device import MAX_COUNT
from services.searcher.embedded.index.filters import CompiledFilter, FilterCache
from services.searcher.embedded.index.gpu import build_gpu
from services.searcher.embedded.index.inverted_lists import IvfSegment, build_ivf
from services.searcher.embedded.index.nearest import FlatSegment, best
from services.searcher.embedded.index.recall import RecallEvaluator, noisy, recall_evaluators, tune
from services.searcher.embedded.index.segments import SegmentQuery
from services.searcher.embedded.rows import Rows
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
)
from tests.searcher.clusters import DIMENSION, ROWS, clustered
from tests.searcher.fake_gpu import FakeDevice


def flat_segment(vectors: np.ndarray) -> FlatSegment:
    count = len(vectors)
    rows = Rows(
        record_rowid=np.arange(1, count + 1),
        image_rowid=np.arange(count),
        level=np.full(count, 2, np.uint8),
        area=np.zeros(count, np.int64),
        predicted_iou=np.zeros(count, np.float32),
        stability_score=np.zeros(count, np.float32),
        created_ms=np.zeros(count, np.int64),
        vectors=vectors,
    )
    segment = FlatSegment(vectors.shape[1], count)
    segment.append(rows, np.ones(count, np.int64), 0)
    return segment


def tuned(segment, target: float):
    tune(segment, recall_evaluators(CompactionInput([segment], 0), {}), target)
    return segment


@pytest.fixture(scope="module")
def segments():
    flat = flat_segment(clustered(ROWS))
    compaction = CompactionInput([flat], 0)
    sample = compaction.sample(3000)
    codec = train_codec(CodeSpec(CodeMethod.PCA_ROTATION, 48), sample)
    device = FakeDevice()
    return {
        "flat": flat,
        "ivf": tuned(build_ivf(compaction), 0.95),
        "codes": tuned(build_codes(compaction, codec, 20), 0.95),
        "gpu": build_gpu(compaction, device.place_flat),
    }


def cosines_with(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1)


def truth(vectors: np.ndarray, query: np.ndarray, mask: np.ndarray, count: int) -> set[int]:
    scores = cosines_with(vectors, query)
    scores[~mask] = -np.inf
    return set(np.argsort(-scores, kind="stable")[: min(count, int(mask.sum()))].tolist())


@pytest.mark.parametrize("kind", ["flat", "ivf", "codes", "gpu"])
@pytest.mark.parametrize("keeps", [1.0, 0.5, 0.2, 0.02, 0.0005])
@pytest.mark.parametrize("count", [1, 25, 3000])
def test_segments_never_return_a_filtered_row_and_fill_the_count(segments, kind, keeps, count) -> None:
    segment = segments[kind]
    mask = np.random.default_rng(3).random(ROWS) < keeps
    matching = int(mask.sum())
    queries = clustered(3, seed=5)
    request = SegmentQuery(queries, ROWS, None if keeps == 1.0 else mask, matching, count)
    for query, (rows, scores) in zip(queries, segment.nearest([request])[0], strict=True):
        assert mask[rows].all()
        assert len(rows) >= min(count, matching)
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_allclose(scores, cosines_with(segments["flat"].vectors[rows], query), atol=1e-5)
        if kind in ("flat", "gpu"):
            assert truth(segments["flat"].vectors, query, mask, count) <= set(rows.tolist())


def test_segments_do_not_return_rows_added_later(segments) -> None:
    query = segments["flat"].vectors[-1:]
    for segment in segments.values():
        ((rows, _),) = segment.nearest([SegmentQuery(query, ROWS - 1, None, ROWS - 1, 10)])[0]
        assert ROWS - 1 not in rows
        ((rows, _),) = segment.nearest([SegmentQuery(query, ROWS, None, ROWS, 10)])[0]
        assert ROWS - 1 in rows


def test_gpu_results_that_rounding_leaves_open_are_decided_on_the_host() -> None:
    """Neighbours closer than half precision can tell apart: the device's own order is wrong, ours is not."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal(DIMENSION).astype(np.float32)
    query /= np.linalg.norm(query)
    sideways = rng.standard_normal((5000, DIMENSION)).astype(np.float32)
    sideways -= np.outer(sideways @ query, query)
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    near = (0.5 * query + np.sqrt(0.75) * sideways).astype(np.float16).astype(np.float32)
    flat = flat_segment(near)
    segment = build_gpu(CompactionInput([flat], 0), FakeDevice().place_flat)
    mask = np.ones(5000, np.bool_)
    device_rows = segment.index.search(query[np.newaxis], 20)[1][0]
    expected = truth(near, query, mask, 20)
    assert set(device_rows.tolist()) != expected
    ((rows, _),) = segment.nearest([SegmentQuery(query[np.newaxis], 5000, None, 5000, 20)])[0]
    assert expected <= set(rows.tolist())


def test_ivf_reaches_its_recall_target(segments) -> None:
    segment = segments["ivf"]
    assert isinstance(segment, IvfSegment)
    assert segment.recall >= 0.95
    assert segment.effort < segment.most_effort
    fresh = RecallEvaluator(CompactionInput([segments["flat"]], 0), clustered(200, seed=11))
    assert fresh.recall(segment) >= 0.9


def test_recall_of_an_exact_segment_is_one(segments) -> None:
    evaluator = RecallEvaluator(CompactionInput([segments["flat"]], 0), noisy(clustered(128, seed=12)))
    assert evaluator.recall(segments["flat"]) == 1.0
    assert evaluator.recall(segments["gpu"]) == 1.0


@pytest.mark.parametrize("method", [CodeMethod.PCA_ROTATION, CodeMethod.ITQ])
def test_binary_codes_reach_recall_and_beat_unrotated_signs(segments, method) -> None:
    compaction = CompactionInput([segments["flat"]], 0)
    evaluator = RecallEvaluator(compaction, noisy(clustered(128, seed=12)))
    segment = build_codes(compaction, train_codec(CodeSpec(method, 48), compaction.sample(3000)), 20)
    assert isinstance(segment, CodeSegment)
    assert evaluator.recall(segment) > 0.8
    raw = build_codes(compaction, Codec(np.eye(DIMENSION, dtype=np.float32)[:8], np.zeros(8, np.float32)), 20)
    assert evaluator.recall(segment) > evaluator.recall(raw)


def test_a_codec_round_trips_through_bytes() -> None:
    codec = train_codec(CodeSpec(CodeMethod.PCA_ROTATION, 16), clustered(500))
    again = Codec.from_bytes(codec.to_bytes())
    np.testing.assert_array_equal(again.encode(clustered(9)), codec.encode(clustered(9)))
    for damaged in (b"", b"PK nonsense", codec.to_bytes()[:40]):
        with pytest.raises(ValueError, match=r".+"):
            Codec.from_bytes(damaged)


@pytest.mark.parametrize("total", [1, 5, 5000, 70_000])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_best_includes_all_ties_with_the_last(total, count) -> None:
    scores = np.random.default_rng(total).integers(0, 50, total).astype(np.float32) / 50
    scores[::7] = -np.inf
    rows = best(scores, count, 0.0)
    finite = np.sort(scores[scores > -np.inf])[::-1]
    floor = finite[min(count, len(finite)) - 1] if len(finite) else np.inf
    assert set(rows.tolist()) == set(np.flatnonzero(scores >= floor).tolist())


@pytest.mark.parametrize("queries", [1, 3, 4, 40])
def test_products_with_some_of_the_vectors_are_right_for_any_number_of_queries_and_threads(
    queries, monkeypatch
) -> None:
    rng = np.random.default_rng(queries)
    vectors = rng.standard_normal((20_000, 48), dtype=np.float32)
    asked = rng.standard_normal((queries, 48), dtype=np.float32)
    monkeypatch.setattr(faiss_compat, "_MULTIPLICATIONS", 1)
    monkeypatch.setattr(faiss_compat, "_ROWS", 1000)
    with ThreadPoolExecutor(2) as two:
        for pool in (None, two):
            monkeypatch.setattr(faiss_compat, "_pool", pool)
            for rows in (np.empty(0, np.intp), np.array([7]), np.flatnonzero(rng.random(len(vectors)) < 0.5)):
                found = faiss_compat.product_of(asked, vectors, rows)
                assert np.allclose(found, asked @ vectors[rows].T, atol=1e-4)


def test_selective_requests_for_the_same_rows_read_them_once(segments, monkeypatch) -> None:
    segment = flat_segment(segments["flat"].vectors)
    mask = np.random.default_rng(3).random(ROWS) < 0.02
    other = np.random.default_rng(4).random(ROWS) < 0.02
    queries = clustered(6, seed=5)
    requests = [
        SegmentQuery(queries[i : i + 2], ROWS, chosen, int(chosen.sum()), count)
        for i, chosen, count in ((0, mask, 1), (2, other, 5), (4, mask, 20))
    ]
    alone = [segment.nearest([request])[0] for request in requests]
    read: list[int] = []
    product_of = nearest.product_of
    monkeypatch.setattr(
        nearest,
        "product_of",
        lambda asked, vectors, rows: read.append(len(rows)) or product_of(asked, vectors, rows),
    )
    for request, one, answers in zip(requests, alone, segment.nearest(requests), strict=True):
        for (rows, _), (found, scores) in zip(one, answers, strict=True):
            assert request.mask[found].all()
            assert set(rows.tolist()) <= set(found.tolist())
            assert len(found) == len(scores)
    assert sorted(read) == sorted([int(mask.sum()), int(other.sum())])


def test_a_count_beyond_the_gpu_limit_is_still_exact(segments) -> None:
    query = clustered(1, seed=9)
    count = MAX_COUNT + 500
    ((rows, _),) = segments["gpu"].nearest([SegmentQuery(query, ROWS, None, ROWS, count)])[0]
    assert truth(segments["flat"].vectors, query[0], np.ones(ROWS, np.bool_), count) <= set(rows.tolist())


def test_equal_filters_of_one_state_share_a_compiled_filter():
    cache = FilterCache(entries=2)
    first = cache.get(("filter", 1), lambda: CompiledFilter(1))
    assert cache.get(("filter", 1), lambda: CompiledFilter(1)) is first
    assert cache.get(("filter", 2), lambda: CompiledFilter(2)).seq == 2
    cache.get(("filter", 3), lambda: CompiledFilter(3))
    assert cache.get(("filter", 1), lambda: CompiledFilter(1)) is not first, "it had been asked longest ago"
