"""In the background: compaction in bounded steps, indexes that come back, tuning by real queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import maintenance, planning
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.compaction import CompactionInput, select_for_compaction
from services.searcher.embedded.index.index_files import FOLDER
from services.searcher.embedded.index.inverted_lists import IvfSegment
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.recall import RecallEvaluator
from services.searcher.queries import Deletion, Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.clusters import DIMENSION, MODEL, clustered, fill, search
from tests.waiting import wait_for

CHUNK = 500


def settings_of(folder: Path, **fields: object) -> EmbeddedSettings:
    usual = {"chunk_rows": CHUNK, "ann_above": 2000, "ann_rows": 1000, "page_ttl_s": 0.0}
    return EmbeddedSettings(folder=folder, **(usual | fields))  # type: ignore[arg-type]


def kinds(engine: EmbeddedEngine) -> list[str]:
    return [segment.index for segment in engine.stats("c")[0].segments]


def test_maintenance_runs_by_itself(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_PERIOD_S", 0.01)
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(CHUNK))
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    wait_for(lambda: engine.stats("c")[0].tombstone_count == 0)
    engine.close()


def test_many_segments_with_tombstones_are_compacted_a_few_at_a_time(tmp_path) -> None:
    """A compaction holds its rows twice, so it must not take the whole collection at once."""
    engine = EmbeddedEngine(settings_of(tmp_path, ann_above=10**9))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(20 * CHUNK), batch=100)
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    index = engine._collections.find("c").index
    run = select_for_compaction(index.state, engine._committer.seq, CHUNK, 0.2)
    assert sum(segment.columns.used for segment in run) <= 10 * CHUNK
    engine.run_maintenance()
    assert sum(view.segment.columns.dead for view in index.state.views) == 0
    assert len(index.state.views) <= 11
    engine.close()


def test_a_collection_is_indexed_from_ann_above_records_on(tmp_path) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path, max_unindexed_bytes=1))
    engine.create_collection(Collection("c", MODEL))
    vectors = clustered(2001)
    fill(engine, vectors[:1999])
    engine.run_maintenance()
    assert set(kinds(engine)) == {"flat", "growing"}
    fill(engine, vectors[1999:2000], first=1999)
    with pytest.raises(RegionSearchError, match="wait for an index"):
        fill(engine, vectors[2000:], first=2000)
    engine.run_maintenance()
    assert kinds(engine) == ["ivf"]
    engine.close()


def test_a_compacted_approximate_segment_becomes_approximate_again(tmp_path) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(3000))
    engine.run_maintenance()
    fill(engine, clustered(1000, seed=1), first=3000)
    engine.run_maintenance()
    assert kinds(engine) == ["ivf", "ivf"], "the first one is much larger than the second one, and stays"
    deleted = engine.delete("c", Deletion(filter=Filter(min_area=1000, max_area=1999)))
    assert deleted.record_count == 1000
    engine.run_maintenance()
    assert kinds(engine) == ["ivf", "ivf"]
    assert engine.stats("c")[0].tombstone_count == 0
    assert len(list((tmp_path / FOLDER).iterdir())) == 2, "the files of the segment before it have gone"
    engine.delete("c", Deletion(filter=Filter(max_area=2999)))
    engine.run_maintenance()
    assert kinds(engine) == ["ivf"], "an empty one goes"
    engine.close()


def test_approximate_segments_are_merged_as_they_grow(tmp_path) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.create_collection(Collection("c", MODEL))
    vectors = clustered(12_000)
    most = 0
    for start in range(0, len(vectors), 1000):
        fill(engine, vectors[start : start + 1000], first=start)
        engine.run_maintenance()
        most = max(most, len(kinds(engine)))
    assert most <= 5, "the number of segments grows with the logarithm of the rows"
    assert len(list((tmp_path / FOLDER).iterdir())) == kinds(engine).count("ivf")
    found = [search(engine, vector)[0].record.record_id for vector in vectors[::1500]]
    assert found == [f"r{row}" for row in range(0, 12_000, 1500)]
    engine.close()


def test_a_merge_links_the_vectors_of_large_segments_and_rewrites_those_with_deleted_rows(tmp_path) -> None:
    vectors = clustered(5000)

    def merged(folder: Path, *, deleted: bool) -> tuple[EmbeddedEngine, list[Path]]:
        engine = EmbeddedEngine(settings_of(folder, compact_above=0.9))
        engine.create_collection(Collection("c", MODEL))
        fill(engine, vectors[:3000])
        engine.run_maintenance()
        (first,) = (folder / FOLDER).iterdir()
        kept = (first / "vectors").stat().st_ino
        if deleted:
            engine.delete("c", Deletion(filter=Filter(max_area=99)))
            engine.run_maintenance()
        fill(engine, vectors[3000:], first=3000)
        engine.run_maintenance()
        assert kinds(engine) == ["ivf"]
        (folder_of,) = (folder / FOLDER).iterdir()
        parts = sorted(folder_of.glob("vectors*"))
        assert (parts[0].stat().st_ino == kept) is not deleted
        return engine, parts

    for deleted in (False, True):
        engine, parts = merged(tmp_path / str(deleted), deleted=deleted)
        assert len(parts) == (1 if deleted else 2)
        rows = 4900 if deleted else 5000
        assert sum(part.stat().st_size for part in parts) == 2 * DIMENSION * rows
        for reopened in (False, True):
            if reopened:
                engine.close()
                engine = EmbeddedEngine(settings_of(tmp_path / str(deleted), compact_above=0.9))
                assert kinds(engine) == ["ivf"], "the stored index is used"
            for row in range(100, 5000, 700):
                hit = search(engine, vectors[row])[0]
                assert (hit.record.record_id, round(hit.score, 3)) == (f"r{row}", 1.0)
        engine.close()


def test_an_index_for_a_collection_that_is_deleted_meanwhile_is_dropped(tmp_path, monkeypatch) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path))
    for name in ("c", "other"):
        engine.create_collection(Collection(name, MODEL))
        fill(engine, clustered(2000), name=name)
    build = planning.build_ivf

    def deleting(compaction: CompactionInput, files: object) -> IvfSegment:
        if "c" in [one.name for one in engine.list_collections()]:
            engine.delete_collection("c")
        return build(compaction, files)

    monkeypatch.setattr(planning, "build_ivf", deleting)
    engine.run_maintenance()
    assert [(one.collection, one.segments[0].index) for one in engine.stats(None)] == [("other", "ivf")]
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    engine.close()


def test_writes_that_are_faster_than_the_builds_of_indexes_are_refused_until_one_is_built(
    tmp_path, monkeypatch
) -> None:
    rows = 4 * DIMENSION
    engine = EmbeddedEngine(settings_of(tmp_path, max_unindexed_bytes=2500 * rows))
    engine.create_collection(Collection("c", MODEL))
    monkeypatch.setattr(maintenance.Maintenance, "_build_faster", lambda *_: False)  # as one that takes long
    fill(engine, clustered(2000))
    fill(engine, clustered(1000, seed=1), first=2000, batch=1000)
    with pytest.raises(RegionSearchError, match="max_unindexed_bytes") as caught:
        fill(engine, clustered(10, seed=2), first=3000)
    assert caught.value.kind is Kind.OVERLOADED
    assert caught.value.retry_after_s
    monkeypatch.undo()
    engine.run_maintenance()
    fill(engine, clustered(10, seed=2), first=3000)
    assert engine.get_collection("c").record_count == 3010
    engine.close()


def away(count: int, seed: int = 0) -> np.ndarray:
    """Queries as texts are: close to each other, and far from all that is stored."""
    rng = np.random.default_rng(seed)
    vectors = np.full(DIMENSION, 0.5) + 0.4 * rng.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_an_approximate_index_is_tuned_again_when_recall_for_words_is_too_low(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planning, "_MEASURE_S", 0.0)
    larger = {"chunk_rows": 2000, "ann_rows": 2000}  # small segments are searched exactly
    settings = settings_of(tmp_path, recall_target=0.9).model_copy(update=larger)
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(4500))
    engine.run_maintenance()

    def segments() -> list[IvfSegment]:
        found = [view.segment for view in engine._collections.find("c").index.state.views]
        return [segment for segment in found if isinstance(segment, IvfSegment)]

    def recalls() -> list[float]:
        queries = away(200, seed=1)
        return [
            RecallEvaluator(CompactionInput([segment], -1), queries).recall(segment) for segment in segments()
        ]

    assert min(recalls()) > 0.85, "before any query has come"
    for segment in segments():  # as if tuned to other queries than those that come from now on
        segment.effort, segment.recalls, segment.seen = 1, dict.fromkeys(QueryKind, 1.0), set(QueryKind)
    assert min(recalls()) < 0.8
    for query in (q for q in away(20) for _ in range(3)):
        search(engine, query)
    engine.run_maintenance()
    engine.run_maintenance()
    assert min(recalls()) < 0.8, "the same few queries again and again tell nothing"
    for query in away(100, seed=2):
        search(engine, query)
    engine.run_maintenance()
    assert min(engine.stats("c")[0].segments, key=lambda s: s.recall or 1.0).recall < 0.8, "it is known"
    engine.run_maintenance()
    assert min(recalls()) > 0.85
    engine.close()
    engine = EmbeddedEngine(settings)
    assert min(recalls()) > 0.85, "it stays so"
    engine.close()
