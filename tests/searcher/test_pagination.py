"""A walk through all pages shows every record once, over every kind of index; ties follow their ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.queries import candidate_source, tie_order
from services.searcher.embedded.store import lookups
from services.searcher.queries import Hit, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection, Level, Record, StoredImage, Upsert
from tests.searcher.clusters import DIMENSION, MODEL, clustered
from tests.searcher.conftest import search_request, unit_vectors, upsert_request
from tests.searcher.random_ops import following

ROWS = 6000
NOTHING = np.empty((0, DIMENSION), np.float32)


def filled(folder: Path, vectors: np.ndarray, kind: str, per_image: int = 20) -> EmbeddedEngine:
    settings = EmbeddedSettings(
        folder=folder,
        chunk_rows=1500,
        ann_above=2000 if kind == "ivf" else 10**9,
        ann_rows=3000,
        codes_rows=3000,
    )
    engine = EmbeddedEngine(settings)
    codes = CodeSpec(CodeMethod.PCA_ROTATION, 48, 2) if kind == "codes" else None
    engine.create_collection(Collection("c", MODEL, codes))
    for start in range(0, len(vectors), 1500):
        rows = range(start, min(start + 1500, len(vectors)))
        # Ids that do not come in the order of writing.
        images = {row: f"i{(row // per_image * 7919) % 10_007}" for row in rows}
        records = [
            Record(
                f"r{(row * 7919) % 100_003:06d}",
                images[row],
                Level.REGION if row % per_image else Level.IMAGE,
                area=row,
            )
            for row in rows
        ]
        described = [StoredImage(name) for name in dict.fromkeys(images.values())]
        engine.upsert("c", MODEL, Upsert(described, records, vectors[rows.start : rows.stop]))
    engine.run_maintenance()
    return engine


def walk(engine: EmbeddedEngine, query: Query) -> Iterator[list[Hit]]:
    while True:
        (page,) = engine.search("c", MODEL, [query])
        yield list(page.hits)
        if not page.more:
            return
        assert len(page.hits) == query.limit
        query = following(query, page)


def spoil(engine: EmbeddedEngine) -> None:
    """Lets approximate segments overlook much."""
    for view in engine._collections.find("c").index.state.views:
        if view.segment.approximate:
            view.segment.effort = 1


@pytest.mark.parametrize("kind", ["ivf", "codes", "flat"])
@pytest.mark.parametrize("grouped", [False, True])
def test_paging_through_all_hits_shows_every_record_once(tmp_path, kind: str, grouped: bool) -> None:
    engine = filled(tmp_path, clustered(ROWS), kind)
    spoil(engine)
    queries = unit_vectors(1, seed=3, dimension=DIMENSION)
    query = Query(queries, queries[:0], limit=25 if grouped else 250, group_by_image=grouped)
    pages = list(walk(engine, query))
    hits = [hit for page in pages for hit in page]
    keys = [hit.image.image_id if grouped else hit.record.record_id for hit in hits]
    assert len(set(keys)) == len(keys) == (ROWS // 20 if grouped else ROWS)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    exact = [hit.position.sort_key for hit in hits[len(pages[0]) :]]
    assert exact == sorted(exact), "from the second page on the order is exact"
    (whole,) = engine.search("c", MODEL, [replace(query, limit=1000, effort=np.inf)])
    best = [hit.position.sort_key for hit in whole.hits]
    assert best == sorted(best)
    assert best[0] == min(hit.position.sort_key for hit in hits)
    if kind == "flat":
        assert [hit.position for hit in hits[: len(best)]] == [hit.position for hit in whole.hits]
    engine.close()


@pytest.mark.parametrize("kind", ["ivf", "codes", "flat"])
@pytest.mark.parametrize("level", [None, Level.REGION])
@pytest.mark.parametrize("grouped", [False, True])
def test_hits_of_equal_vectors_are_paged_in_the_order_of_their_ids(
    tmp_path, monkeypatch, kind: str, level: Level | None, grouped: bool
) -> None:
    for module in (tie_order, candidate_source):
        monkeypatch.setattr(module, "MANY", 50)
    monkeypatch.setattr(tie_order, "_BLOCK", 512)
    read: list[int] = []
    public_ids = lookups.public_ids
    monkeypatch.setattr(
        lookups,
        "public_ids",
        lambda connection, keys: ((k := list(keys)) and read.append(len(k))) or public_ids(connection, k),
    )
    rows = np.repeat(unit_vectors(1, dimension=DIMENSION), ROWS, axis=0)
    engine = filled(tmp_path, rows, kind, per_image=4)
    query = Query(rows[:1], rows[:0], level=level, limit=500, group_by_image=grouped)
    engine.search("c", MODEL, [query])
    read.clear()
    pages = list(walk(engine, query))
    if kind == "flat":
        assert max(read) < 4 * 500 + 5 * 1024, "only the ids of what can be on a page are read"
    hits = [hit for page in pages for hit in page]
    order = [hit.position.sort_key[1:] for hit in hits]
    expected = ROWS // 4 if grouped else ROWS if level is None else ROWS * 3 // 4
    assert len(set(order)) == len(order) == expected
    if kind == "flat":
        assert order == sorted(order)
    else:
        later = order[len(pages[0]) :]
        assert later == sorted(later)
    engine.close()


def test_few_images_with_many_regions_are_grouped_in_one_pass(tmp_path, monkeypatch) -> None:
    """Grouping asks for more records while images are missing, but not where there are no more images."""
    engine = filled(tmp_path, unit_vectors(ROWS, dimension=DIMENSION), "flat", per_image=400)
    passes: list[int] = []
    scored: list[int] = []
    fetch, exact = VectorIndex.fetch, candidate_source.exact_scores
    monkeypatch.setattr(VectorIndex, "fetch", lambda *asked: passes.append(1) or fetch(*asked))
    monkeypatch.setattr(
        candidate_source,
        "exact_scores",
        lambda segment, rows, queries: scored.append(len(rows)) or exact(segment, rows, queries),
    )
    (page,) = engine.search(
        "c",
        MODEL,
        [Query(unit_vectors(1, seed=5, dimension=DIMENSION), NOTHING, group_by_image=True, limit=20)],
    )
    assert len({hit.image.image_id for hit in page.hits}) == len(page.hits) == ROWS // 400
    assert not page.more
    assert len(passes) == 1
    assert sum(scored) < 2 * ROWS
    engine.close()


async def test_paging_and_exact_search_over_grpc(stub) -> None:
    for number in range(5):
        await stub.Upsert(upsert_request(f"image{number}", unit_vectors(20, seed=number)))
    request = search_request(unit_vectors(1, seed=9), page_size=7, exact=True, effort=2.5)
    seen: list[str] = []
    while True:
        (result,) = (await stub.Search(request)).results
        seen += [hit.record.record_id for hit in result.hits]
        if not result.next_page_token:
            break
        request.page_token = result.next_page_token
    assert len(set(seen)) == len(seen) == 100


@pytest.mark.parametrize("effort", [0.0, -1.0, 1001.0, float("nan"), float("inf")])
async def test_an_impossible_effort_is_refused(stub, effort: float) -> None:
    with pytest.raises(Exception, match="effort"):
        await stub.Search(search_request(unit_vectors(1), effort=effort))


async def test_scores_stay_within_one_and_every_vector_finds_itself(stub) -> None:
    vectors = unit_vectors(60, seed=4)
    await stub.Upsert(upsert_request("image", vectors))
    answer = await stub.GetRecords(
        search_pb2.GetRecordsRequest(collection="default", image_ids=["image"], include_vectors=True)
    )
    rounded = np.frombuffer(answer.vectors.data, np.float32).reshape(60, -1)
    for asked in (vectors, rounded, 3.0 * rounded):
        found = await stub.Search(
            search_pb2.SearchRequest(
                collection="default",
                model=search_request(vectors).model,
                queries=tensor_to_proto(asked.astype(np.float32)),
                min_score=1.0,
            )
        )
        for number, result in enumerate(found.results):
            assert [hit.record.record_id for hit in result.hits] == [f"image-{number:03d}"]
            assert 1 - 2**-22 <= result.hits[0].score <= 1.0
