"""Large collections on a GPU: as lists, as graphs, or on the host, with what was promised of the recall."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.searcher.embedded import open_store
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.device import DeviceGraph, DeviceLists, OnDevice, tune_on_device
from services.searcher.embedded.index.inverted_lists import IvfSegment, build_ivf
from services.searcher.embedded.index.recall import recall_evaluators
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import SegmentQuery
from services.searcher.queries import Deletion, Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.clusters import MODEL, ROWS, clustered, fill, search
from tests.searcher.fake_gpu import FakeDevice
from tests.searcher.test_index import flat_segment

LISTS_BYTES = 1 << 20  # more than the lists of the tests take, and less than a graph


@pytest.fixture
def threads() -> Iterator[SearchThreads]:
    made = SearchThreads()
    yield made
    made.close()


@pytest.fixture(scope="module")
def compaction() -> CompactionInput:
    return CompactionInput([flat_segment(clustered(ROWS))], 0)


@pytest.fixture(scope="module")
def built(compaction) -> IvfSegment:
    return build_ivf(compaction)


@pytest.fixture
def segment(built) -> IvfSegment:
    return copy.copy(built)


def asked(keeps: float = 1.0, count: int = 10, effort: float = 1.0) -> SegmentQuery:
    mask = np.random.default_rng(3).random(ROWS) < keeps
    return SegmentQuery(
        clustered(20, seed=5), ROWS, None if keeps == 1.0 else mask, int(mask.sum()), count, effort=effort
    )


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (FakeDevice(), "lists"),
        (FakeDevice(cuvs=True), "graph"),
        (FakeDevice(cuvs=True, memory=LISTS_BYTES), "lists"),
        (FakeDevice(cuvs=True, real_memory=1000), "host"),
        (FakeDevice(memory=0), "host"),
    ],
    ids=["no graphs", "graphs", "no room for graphs", "less memory than expected", "no room"],
)
def test_a_large_collection_is_placed_by_what_fits_and_by_what_the_library_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDevice, kind: str
) -> None:
    monkeypatch.setattr(open_store, "choose_device", lambda settings: device)
    settings = EmbeddedSettings(
        folder=tmp_path, chunk_rows=1000, ann_above=2000, ann_rows=2000, gpu_rows=2000, page_ttl_s=0.0
    )
    vectors = clustered(5000)
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("c", MODEL, recall_target=0.95))
    fill(engine, vectors)
    engine.run_maintenance()
    for restarted in (False, True):
        if restarted:
            engine.close()
            engine = EmbeddedEngine(settings)
            assert [s.index for s in engine.stats("c")[0].segments] == ["ivf"], "it is not built again"
            engine.run_maintenance()
        device.searched.clear()
        assert search(engine, vectors[123], limit=1)[0].record.record_id == "r123"
        assert {asked for asked, _ in device.searched} == ({kind} - {"host"})
        segments = engine.stats("c")[0].segments
        assert [s.index for s in segments] == [
            {"lists": "gpu-ivf", "graph": "gpu-cagra", "host": "ivf"}[kind]
        ]
        assert min(s.recall for s in segments) >= 0.95
    odd = search(engine, vectors[123], filter=Filter(tags=("odd",)), limit=100)
    assert len(odd) == 100 and {hit.image.tags for hit in odd} == {("odd",)}
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    engine.run_maintenance()
    assert {hit.image.tags for hit in search(engine, vectors[123], limit=1000)} == {("odd",)}
    engine.close()


@pytest.mark.parametrize("keeps", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("count", [10, 3000])
def test_lists_on_a_gpu_answer_as_those_on_the_host(segment, threads, keeps, count) -> None:
    segment.effort = 8
    expected = segment.nearest([asked(keeps, count)])
    device = FakeDevice()
    segment.device = DeviceLists(OnDevice(threads, lambda: device.place_lists(segment.index)))
    found = segment.nearest([asked(keeps, count)])
    for (rows, scores), (other_rows, other_scores) in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(rows, other_rows)
        np.testing.assert_array_equal(scores, other_scores)
    # What needs a selector, or more rows than a GPU gives, is not asked of it.
    assert bool(device.searched) == (keeps >= 0.5 and count == 10)


def test_a_graph_is_searched_as_wide_as_both_kinds_of_query_need(segment, threads, compaction) -> None:
    device = FakeDevice(cuvs=True, graph_finds=0.9)
    tune_on_device(segment, device, threads, recall_evaluators(compaction, {}), 0.98)
    assert isinstance(segment.device, DeviceGraph)
    assert min(segment.recalls.values()) >= 0.98
    device.searched.clear()
    for keeps, effort in ((1.0, 1.0), (0.5, 1.0), (1.0, 3.0), (1.0, 5.0), (0.2, 1.0)):
        segment.nearest([asked(keeps, effort=effort)])
    widths = [width for _, width in device.searched]
    # Wider for filters and more effort; beyond a graph's limit the host's lists answer.
    assert widths[0] == 128 and 256 <= widths[1] <= 288 and widths[2:] == [384]


def test_a_graph_that_misses_the_target_makes_way_for_the_lists(segment, threads, compaction) -> None:
    device = FakeDevice(cuvs=True, graph_finds=0.9)
    evaluators = recall_evaluators(compaction, {})
    tune_on_device(segment, device, threads, evaluators, 0.98)
    device.graph_finds = 0.0
    segment.device._index._held[0].vectors[::2] = 0.0  # what was found before is found no more
    segment.recalls = dict.fromkeys(segment.recalls, 0.5)
    assert segment.may_improve
    tune_on_device(segment, device, threads, evaluators, 0.98)
    assert isinstance(segment.device, DeviceLists)
    assert min(segment.recalls.values()) >= 0.98
    gc.collect()
    threads.run(lambda: None)
    assert device.released_by == ["search"]
