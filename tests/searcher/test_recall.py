"""An approximate index keeps its promise for words and for regions, whatever queries came first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.searcher.embedded.faiss_compat import to_single
from services.searcher.embedded.index import inverted_lists
from services.searcher.embedded.index.compaction import ALL_ROWS, CompactionInput
from services.searcher.embedded.index.index_files import IndexCache
from services.searcher.embedded.index.inverted_lists import build_ivf
from services.searcher.embedded.index.live_queries import LiveQueries, QueryKind
from services.searcher.embedded.index.recall import RecallEvaluator, noisy, recall_evaluators, tune
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import EXACT, SegmentQuery
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.planning import Planner
from services.searcher.embedded.rows import Rows
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection, ModelIdentity

DIMENSION = 32
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(count: int, seed: int = 0) -> np.ndarray:
    """Rows in clusters that fill half of the space, as images do."""
    rng, axes = np.random.default_rng(seed), np.eye(DIMENSION)[: DIMENSION // 2]
    centres = unit(np.random.default_rng(7).standard_normal((300, len(axes))) @ axes)
    noise = unit(rng.standard_normal((count, len(axes))) @ axes)
    rows = unit(centres[rng.integers(0, len(centres), count)] + 0.8 * noise)
    return rows.astype(np.float16).astype(np.float32)


def words(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Queries with a common part that no row has, and whose best rows are hardly better than the others."""
    rng = np.random.default_rng(seed)
    blends = unit(vectors[rng.integers(0, len(vectors), (count, 4))].sum(axis=1))
    apart = np.zeros(DIMENSION)
    apart[-3:] = 1.0
    return unit(blends + 0.6 * unit(rng.standard_normal((count, DIMENSION))) + apart)


def collection(vectors: np.ndarray, codes: CodeSpec | None = None, target: float = 0.0) -> OpenCollection:
    count = len(vectors)
    index = VectorIndex(DIMENSION, count)
    rows = Rows(
        record_rowid=np.arange(1, count + 1),
        image_rowid=np.arange(count) // 50,
        level=np.full(count, 2, np.uint8),
        area=np.zeros(count, np.int64),
        predicted_iou=np.zeros(count, np.float32),
        stability_score=np.zeros(count, np.float32),
        created_ms=np.zeros(count, np.int64),
        vectors=vectors,
    )
    index.add(rows, np.ones(count, np.int64))
    index.seal()
    return OpenCollection(1, Collection("c", MODEL, codes, recall_target=target), index)


def promise_is_kept(folder: Path, count: int, first: str, codes: CodeSpec | None = None) -> None:
    vectors = stored(count)
    opened = collection(vectors, codes)
    search = SearchThreads()
    settings = EmbeddedSettings(ann_above=1, ann_rows=count, codes_rows=count, recall_target=0.98)
    planner = Planner(settings, search, None, IndexCache(folder / "indexes"))
    sources, build = planner.plan(opened, 0)
    opened.index.replace(sources, [build(CompactionInput(sources, 0))])
    (segment,) = (view.segment for view in opened.index.state.views)
    rng = np.random.default_rng(3)
    kinds = {
        "regions": lambda seed: noisy(vectors[rng.integers(0, count, 200)], seed),
        "words": lambda seed: words(vectors, 200, seed),
    }
    fresh = {name: RecallEvaluator(CompactionInput([segment], 0), made(99)) for name, made in kinds.items()}
    asked = [first, next(name for name in kinds if name != first)]
    for name in (None, *asked):
        if name is not None:
            queries = kinds[name](5)
            opened.index.live.note(queries, (queries @ vectors.T).max(axis=1))
            while planner.tune(opened) is not None:
                pass
        found = {kind: evaluator.recall(segment) for kind, evaluator in fresh.items()}
        assert min(found.values()) >= 0.95, f"after {name}: {found}"
    assert segment.effort < segment.most_effort
    unit_rows = unit(vectors)
    for part in (0.5, 0.1, 0.03):
        mask = rng.random(count) < part
        for name, made in kinds.items():
            queries = made(11)[:50]
            exact = np.where(mask, queries @ unit_rows.T, -1.0)
            floor = np.sort(exact, axis=1)[:, -10]
            request = SegmentQuery(queries, count, mask, int(mask.sum()), 10)
            hits = [
                min(10, int((scores >= least - 1e-4).sum()))
                for least, (_, scores) in zip(floor, segment.nearest([request])[0], strict=True)
            ]
            assert np.mean(hits) >= 9.5, f"{name}, a filter of {part}"
    search.close()


@pytest.mark.parametrize("first", ["regions", "words"])
def test_recall_target_holds_for_words_and_regions_whichever_came_first(tmp_path, first: str) -> None:
    promise_is_kept(tmp_path, 100_000, first)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["regions", "words"])
def test_recall_target_holds_in_a_larger_index(tmp_path, first: str) -> None:
    promise_is_kept(tmp_path, 1_000_000, first)


def test_recall_target_holds_for_binary_codes(tmp_path) -> None:
    promise_is_kept(tmp_path, 12_000, "regions", CodeSpec(CodeMethod.PCA_ROTATION, 32, 10))


def test_the_recall_target_of_a_collection_goes_before_that_of_the_searcher(tmp_path) -> None:
    vectors = stored(12_000)
    settings = EmbeddedSettings(ann_above=1, ann_rows=1, recall_target=0.5)
    efforts: list[float] = []
    for target in (0.0, 0.95):
        opened = collection(vectors, target=target)
        planner = Planner(settings, SearchThreads(), None, IndexCache(tmp_path / "indexes"))
        sources, build = planner.plan(opened, 0)
        segment = build(CompactionInput(sources, 0))
        assert min(segment.recalls.values()) >= (target or 0.5)
        efforts.append(segment.effort)
        opened.index.replace(sources, [segment])
        segment.recalls = dict.fromkeys(QueryKind, 0.7)  # as measured on later queries
        assert (planner.tune(opened) is segment) == (target == 0.95)
    assert efforts[0] < efforts[1]


def test_an_index_of_equal_vectors_needs_no_effort_to_find_ten_of_the_best() -> None:
    """Recall counts scores: which of the equal rows an index returns does not matter."""
    vectors = np.repeat(stored(1), 5000, axis=0)
    compaction = CompactionInput([collection(vectors).index.state.views[0].segment], ALL_ROWS)
    segment = build_ivf(compaction)
    tune(segment, recall_evaluators(compaction, {}), 0.98)
    assert (segment.effort, set(segment.recalls.values())) == (1, {1.0})


def test_an_exact_request_to_an_approximate_index_scans_all_rows(tmp_path) -> None:
    vectors = stored(20_000)
    for codes in (None, CodeSpec(CodeMethod.PCA_ROTATION, 16, 1)):
        opened = collection(vectors, codes)
        settings = EmbeddedSettings(ann_above=1, ann_rows=1, codes_rows=1)
        planner = Planner(settings, SearchThreads(), None, IndexCache(tmp_path / "indexes"))
        sources, build = planner.plan(opened, 0)
        segment = build(CompactionInput(sources, 0))
        segment.effort = 1
        queries = words(vectors, 20, 1)
        request = SegmentQuery(queries, len(vectors), None, len(vectors), 10, effort=EXACT)
        truth = np.sort(queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T)[:, -10:]
        for best, (_, scores) in zip(truth, segment.nearest([request])[0], strict=True):
            np.testing.assert_allclose(np.sort(scores)[-10:], best, atol=1e-5)


def test_many_queries_of_one_kind_do_not_evict_the_few_of_the_other() -> None:
    live = LiveQueries()
    rare = unit(np.random.default_rng(0).standard_normal((80, 8)))
    live.note(rare, np.full(80, 0.3, np.float32))
    for seed in range(20):
        crowd = unit(np.random.default_rng(seed + 1).standard_normal((500, 8)))
        live.note(np.concatenate([crowd, crowd[:1]]), np.full(501, 0.9, np.float32))
    assert live.count(QueryKind.WORD) == 80
    assert live.count(QueryKind.REGION) == 256
    last = {vector.tobytes() for vector in crowd}
    kept = live.sample(QueryKind.REGION, 256)
    assert len(np.unique(kept, axis=0)) == 256
    assert 0 < sum(vector.tobytes() in last for vector in kept) < 200, (
        "a sample of thousands, not the last ones"
    )
    assert len(live.fresh(QueryKind.WORD, 32)) == 64
    assert live.fresh(QueryKind.WORD, 32) is None


def test_half_precision_is_converted_without_loss() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].reshape(-1, 2)
    np.testing.assert_array_equal(to_single(finite), finite.astype(np.float32))
    assert to_single(finite[:0]).shape == (0, 2)
    np.testing.assert_array_equal(to_single(finite[::7]), finite[::7].astype(np.float32))


def test_a_filter_that_nearly_all_rows_pass_finds_the_rows_that_a_look_up_of_each_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = stored(3000)
    segment = build_ivf(CompactionInput([collection(vectors).index.state.views[0].segment], ALL_ROWS))
    segment.effort = 5
    mask = np.random.default_rng(1).random(len(vectors)) < 0.6
    mask[:600] = False  # those of the first queries
    queries = np.concatenate([vectors[:3], words(vectors, 20, 1)])
    request = SegmentQuery(queries, 3000, mask, int(mask.sum()), 30)
    found = segment.candidates(queries, request, 30)
    monkeypatch.setattr(inverted_lists, "_BROAD", 0)
    looked_up = segment.candidates(queries, request, 30)
    assert found is not None
    assert looked_up is not None
    assert mask[found].all()
    for mine, theirs in zip(found, looked_up, strict=True):
        assert set(mine) == set(theirs)


def copied(part: float, lists: float) -> bool:
    """Whether rows that pass are copied, of a large segment whose searches look at this part of the lists."""
    segment = build_ivf(CompactionInput([collection(stored(3000)).index.state.views[0].segment], ALL_ROWS))
    segment.columns.used = 250_000  # as the costs of a large segment are
    segment.effort = max(1, int(segment.index.nlist * lists))
    request = SegmentQuery(stored(1), 250_000, np.ones(250_000, np.bool_), int(part * 250_000), 30)
    return segment._is_gathered(request)


def test_few_rows_are_copied_and_many_are_scanned() -> None:
    assert [copied(part, 0.2) for part in (0.001, 0.01, 0.03, 0.2, 0.5)] == [True, True, True, False, False]


def test_rows_are_copied_where_too_few_pass_near_a_query_to_fill_a_page() -> None:
    """Even if a scan of the few lists that are enough without a filter is cheaper: the best lie anywhere."""
    assert [copied(part, 0.0) for part in (0.001, 0.01, 0.02, 0.05)] == [True, True, True, False]
