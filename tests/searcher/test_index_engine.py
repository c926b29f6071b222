"""Indexes inside the engine: chosen, rebuilt, freed and read while writers write."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.searcher.embedded import open_store as engine_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.gpu import GpuSegment
from services.searcher.queries import Deletion, Filter, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection, Level, Record, StoredImage, Upsert
from tests.searcher.clusters import DIMENSION, MODEL, clustered, fill, search
from tests.searcher.fake_gpu import FakeDevice


@pytest.mark.parametrize("kind", ["ivf", "codes", "gpu"])
def test_faster_indexes_replace_flat_ones_and_survive_restart_and_deletes(
    tmp_path, monkeypatch, kind
) -> None:
    if kind == "gpu":
        monkeypatch.setattr(engine_module, "choose_device", lambda settings: FakeDevice())
    settings = EmbeddedSettings(
        folder=tmp_path, chunk_rows=1000, ann_above=10_000 if kind == "gpu" else 2000, ann_rows=2000,
        codes_rows=2000, gpu_rows=2000, page_ttl_s=0.0,
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
        assert kinds == {"gpu": ["gpu-flat"] * 2 + ["flat", "growing"]}.get(kind, [kind, "growing"])
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
