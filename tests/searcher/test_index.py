"""Filters, large counts and ties on every kind of segment; recall of the approximate ones; nobody waits."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.searcher.embedded import open_store as engine_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.approximate import IvfSegment, build_ivf
from services.searcher.embedded.index.binary import Codec, CodeSegment, build_codes, train_codec
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.filters import CompiledFilter, FilterCache
from services.searcher.embedded.index.gpu import MAX_COUNT, GpuSegment, build_gpu
from services.searcher.embedded.index.nearest import FlatSegment, best
from services.searcher.embedded.index.recall import RecallEvaluator, noisy, recall_evaluators, tune
from services.searcher.embedded.index.segments import SegmentQuery
from services.searcher.embedded.rows import Rows
from services.searcher.queries import Deletion, Filter, Query
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
from tests.searcher.fake_gpu import FakeDevice

DIMENSION = 48
ROWS = 6000
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION)


def clustered(count: int, seed: int = 0, clusters: int = 60) -> np.ndarray:
    """Vectors with structure, as real ones have, stored precision."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((clusters, DIMENSION))
    vectors = centres[rng.integers(0, clusters, count)] + 0.5 * rng.standard_normal((count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


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
        "gpu": build_gpu(compaction, device.place),
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
    segment = build_gpu(CompactionInput([flat], 0), FakeDevice().place)
    mask = np.ones(5000, np.bool_)
    device_rows = segment._held[0].search(query[np.newaxis], 20)[1][0]
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


def fill(
    engine: EmbeddedEngine, vectors: np.ndarray, name: str = "c", batch: int = 500, first: int = 0
) -> None:
    for start in range(first, first + len(vectors), batch):
        rows = vectors[start - first : start - first + batch]
        image = StoredImage(f"image{start}", tags=("even",) if start // batch % 2 == 0 else ("odd",))
        records = [
            Record(f"r{start + i}", image.image_id, Level.REGION, area=start + i) for i in range(len(rows))
        ]
        engine.upsert(name, MODEL, Upsert([image], records, rows))


def search(engine: EmbeddedEngine, query: np.ndarray, name: str = "c", **fields) -> list:
    asked = Query(query[np.newaxis], np.empty((0, DIMENSION), np.float32), **fields)
    return list(engine.search(name, MODEL, [asked])[0].hits)


@pytest.mark.parametrize("kind", ["ivf", "codes", "gpu"])
def test_faster_indexes_replace_flat_ones_and_survive_restart_and_deletes(
    tmp_path, monkeypatch, kind
) -> None:
    if kind == "gpu":
        monkeypatch.setattr(engine_module, "choose_device", lambda settings: FakeDevice())
    settings = EmbeddedSettings(
        folder=tmp_path, chunk_rows=1000, ann_above=2000, ann_rows=2000, codes_rows=2000, gpu_rows=2000,
        page_ttl_s=0.0,
    )  # fmt: skip
    codes = CodeSpec(CodeMethod.PCA_ROTATION, 48, 20) if kind == "codes" else None
    vectors = clustered(5500)
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("c", MODEL, codes))
    fill(engine, vectors)
    engine.run_maintenance()
    for restarted in (False, True):
        if restarted:
            engine.close()
            engine = EmbeddedEngine(settings)
            engine.run_maintenance()
        (stats,) = engine.stats("c")
        kinds = [segment.index for segment in stats.segments]
        assert kinds == {"gpu": ["flat"] * 3 + ["growing"]}.get(kind, [kind, "growing"])
        assert stats.record_count == 5500
        if kind == "gpu":
            views = engine._collections.find("c").index.state.views
            assert sum(isinstance(view.segment, GpuSegment) for view in views) == 2
        else:
            recalls = [s.recall for s in stats.segments if s.index == kind]
            assert min(recalls) > 0.7
        if kind == "codes":
            assert stats.binary_recall == pytest.approx(np.mean(recalls))
        found = search(engine, vectors[123], limit=1)
        assert found[0].record.record_id == "r123"
        odd = search(engine, vectors[123], filter=Filter(tags=("odd",)), limit=100)
        assert len(odd) == 100
        assert {hit.image.tags for hit in odd} == {("odd",)}
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    engine.run_maintenance()
    engine.run_maintenance()
    assert {hit.image.tags for hit in search(engine, vectors[123], limit=1000)} == {("odd",)}
    (stats,) = engine.stats("c")
    assert stats.tombstone_count == 0
    assert stats.record_count == sum(segment.record_count for segment in stats.segments) == 2500
    engine.close()


def test_deleting_almost_everything_frees_memory_and_disk(tmp_path) -> None:
    settings = EmbeddedSettings(folder=tmp_path, chunk_rows=1000, page_ttl_s=0.0)
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(20_000))
    before, path = engine.stats("c")[0], tmp_path / "records.sqlite"
    engine.close()
    disk = path.stat().st_size
    engine = EmbeddedEngine(settings)
    deleted = engine.delete("c", Deletion(filter=Filter(min_area=50)))
    assert deleted.record_count == 19_950
    for _ in range(3):
        engine.run_maintenance()
    after = engine.stats("c")[0]
    assert after.tombstone_count == 0
    assert len(after.segments) <= 1
    assert after.memory_bytes < before.memory_bytes / 20
    assert len(search(engine, clustered(1)[0], limit=1000)) == 50
    engine.close()
    assert path.stat().st_size < disk / 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_deletes_leave_no_tombstones(tmp_path) -> None:
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, page_ttl_s=0.0, ann_above=10_000_000))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, np.tile(clustered(10_000), (101, 1)), batch=4000)
    deleted = engine.delete("c", Deletion(filter=Filter(min_area=10_000)))
    assert deleted.record_count == 1_000_000
    for _ in range(3):
        engine.run_maintenance()
    stats = engine.stats("c")[0]
    assert stats.record_count == 10_000
    assert stats.tombstone_count == 0
    assert len(search(engine, clustered(1)[0], limit=100)) == 100
    engine.close()


def test_learned_head_is_checked_when_the_collection_is_made(tmp_path) -> None:
    from regionsearch.errors import RegionSearchError

    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=500, codes_rows=500))
    spec = CodeSpec(CodeMethod.LEARNED, 16, 10, "head.npz")
    with pytest.raises(RegionSearchError, match=r"head\.npz"):
        engine.create_collection(Collection("c", MODEL, spec))
    (tmp_path / "heads").mkdir()
    weight = np.random.default_rng(0).standard_normal((16, DIMENSION)).astype(np.float32)
    np.savez(tmp_path / "heads" / "head.npz", weight=weight, bias=np.zeros(16, np.float32))
    engine.create_collection(Collection("c", MODEL, spec))
    fill(engine, clustered(1500))
    engine.run_maintenance()
    assert engine.stats("c")[0].binary_recall > 0.2
    np.testing.assert_array_equal(engine._collections.find("c").codec.weight, weight)
    engine.close()


def test_searches_see_whole_writes_only_while_writers_and_readers_run(tmp_path) -> None:
    """Every image has as many regions as its name says; no reader ever sees fewer."""
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=64, page_ttl_s=0.0))
    engine.create_collection(Collection("c", MODEL))
    vectors = clustered(5)
    problems: list[str] = []
    end = time.monotonic() + 3.0

    def writer(number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            turn += 1
            image_id = f"image{number}-{turn % 10}"
            records = [Record(f"{image_id}-{turn}-{i}", image_id, Level.REGION) for i in range(5)]
            seq = engine.upsert("c", MODEL, Upsert([StoredImage(image_id)], records, vectors)).seq
            hits = engine.search(
                "c", MODEL, [Query(vectors[:1], vectors[:0], filter=Filter(image_ids=(image_id,)))], seq
            )[0].hits
            if sorted(hit.record.record_id for hit in hits) != sorted(r.record_id for r in records):
                problems.append(f"{image_id}: own write not seen")

    def reader() -> None:
        while time.monotonic() < end:
            found: dict[str, set[str]] = {}
            for hit in search(engine, vectors[0], limit=1000):
                found.setdefault(hit.image.image_id, set()).add(hit.record.record_id)
            for image_id, ids in found.items():
                turns = {record_id.split("-")[2] for record_id in ids}
                if len(ids) != 5 or len(turns) != 1:
                    problems.append(f"{image_id}: torn, {sorted(ids)}")

    def keeper() -> None:
        while time.monotonic() < end:
            engine.run_maintenance()

    with ThreadPoolExecutor(7) as pool:
        running = [pool.submit(writer, number) for number in range(3)]
        running += [pool.submit(reader) for _ in range(3)] + [pool.submit(keeper)]
    engine.close()
    for done in running:
        done.result()  # what a thread raised is raised here
    assert problems == []


def test_gpu_memory_is_freed_by_the_thread_that_owns_the_device(tmp_path, monkeypatch) -> None:
    device = FakeDevice()
    monkeypatch.setattr(engine_module, "choose_device", lambda settings: device)
    settings = EmbeddedSettings(folder=tmp_path, chunk_rows=500, gpu_rows=1000, page_ttl_s=0.0)
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(1000))
    engine.run_maintenance()
    assert isinstance(engine._collections.find("c").index.state.views[0].segment, GpuSegment)
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    engine.run_maintenance()
    assert not any(isinstance(v.segment, GpuSegment) for v in engine._collections.find("c").index.state.views)
    gc.collect()
    engine.close()
    assert device.released_by == ["search"]


def test_selective_requests_for_the_same_rows_copy_them_once(segments) -> None:
    segment = flat_segment(segments["flat"].vectors)
    mask = np.random.default_rng(3).random(ROWS) < 0.02
    other = np.random.default_rng(4).random(ROWS) < 0.02
    queries = clustered(6, seed=5)
    requests = [
        SegmentQuery(queries[i : i + 2], ROWS, chosen, int(chosen.sum()), count)
        for i, chosen, count in ((0, mask, 1), (2, other, 5), (4, mask, 20))
    ]
    alone = [segment.nearest([request])[0] for request in requests]
    copied: list[int] = []
    gather = segment.gather
    segment.gather = lambda rows: copied.append(len(rows)) or gather(rows)
    for request, one, answers in zip(requests, alone, segment.nearest(requests), strict=True):
        for (rows, _), (found, scores) in zip(one, answers, strict=True):
            assert request.mask[found].all()
            assert set(rows.tolist()) <= set(found.tolist())
            assert len(found) == len(scores)
    assert sorted(copied) == sorted([int(mask.sum()), int(other.sum())])


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
