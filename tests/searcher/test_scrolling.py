"""Walks by filter, counts and facets: exact in every engine, whatever is written meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import search_pb2
from services.searcher.embedded.queries import scrolling
from services.searcher.engine import Engine
from services.searcher.queries import Deletion, Filter
from services.searcher.response_budget import ResponseBudget
from services.searcher.scrolling import Facet, ImageOrder, Scroll
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher.conftest import MODEL_INFO, failing, ingest
from tests.searcher.engines import engine
from tests.searcher.oracle import Oracle
from tests.searcher.random_ops import (
    IMAGES,
    LIMITS,
    MODEL,
    some_filter,
    some_update,
    some_upsert,
    some_vectors,
)

__all__ = ["engine"]  # the fixture


def walk(engine: Engine, asked: Scroll, between: Callable[[], object] = lambda: None) -> Iterator[Record]:
    while True:
        page = engine.scroll("c", asked)
        assert len(page.stored.records) <= asked.limit
        assert {r.image_id for r in page.stored.records} == {i.image_id for i in page.stored.images}
        yield from page.stored.records
        if page.next_place is None:
            return
        between()
        asked = replace(asked, after=page.next_place, generation=page.generation)


def facets_of(oracle: Oracle, wanted: Filter, level: Level | None, name: str) -> dict[str, tuple[int, int]]:
    """Numbers of records and images by value."""
    records: Counter[str] = Counter()
    images: dict[str, set[str]] = {}
    for image, record, _ in oracle.passing(wanted, level):
        value = record.attributes.get(name, image.attributes.get(name))
        for one in image.tags if not name else [] if value is None else [value]:
            records[one] += 1
            images.setdefault(one, set()).add(image.image_id)
    return {value: (number, len(images[value])) for value, number in records.items()}


def test_walks_counts_and_facets_are_those_of_the_oracle(engine: Engine) -> None:
    rng, oracle = random.Random(11), Oracle()
    for turn in range(14):
        write = some_upsert(rng)
        engine.upsert("c", MODEL, write)
        oracle.upsert(write)
        update = some_update(rng)
        engine.update_images("c", [update], LIMITS)
        oracle.update(update)
        if turn % 4 == 3:
            gone = (rng.choice(IMAGES),)
            engine.delete("c", Deletion(gone))
            oracle.delete_images(gone)
        wanted, level = rng.choice([Filter(), some_filter(rng)]), rng.choice([None, *Level])
        passing = oracle.passing(wanted, level)
        expected = sorted(record.record_id for _, record, _ in passing)
        found = list(walk(engine, Scroll(level, wanted, limit=rng.randint(1, 5))))
        assert sorted(record.record_id for record in found) == expected
        counts = engine.count("c", wanted, level, [Facet(), Facet("kind"), Facet("room", limit=1)])
        assert (counts.record_count, counts.image_count) == (
            len(expected),
            len({image.image_id for image, _, _ in passing}),
        )
        for name, facet in zip(("", "kind", "room"), counts.facets, strict=True):
            right = facets_of(oracle, wanted, level, name)
            order = sorted(right, key=lambda value: (-right[value][0], value))
            assert facet.value_count == len(right)
            shown = order[:1] if name == "room" else order
            assert [(v.value, v.record_count, v.image_count) for v in facet.values] == [
                (value, *right[value]) for value in shown
            ]
        if engine.name != "milvus":
            listed = engine.list_images("c", 100, None, wanted=wanted)
            those = {image.image_id for image, _, _ in oracle.passing(wanted)}
            if wanted != Filter():
                assert ({i.image_id for i in listed.images}, listed.total_count) == (those, len(those))


def test_a_walk_returns_once_what_is_there_all_the_time(engine: Engine) -> None:
    """Images are written again, added and deleted between its pages."""
    rng = random.Random(5)
    first = some_upsert(rng)
    for _ in range(12):
        engine.upsert("c", MODEL, some_upsert(rng))
    engine.upsert("c", MODEL, replace(first, skip_existing=False))
    there = {record.record_id for record in walk(engine, Scroll())}
    kept = set(there)

    def meanwhile() -> None:
        write = some_upsert(rng)
        engine.upsert("c", MODEL, write)
        kept.intersection_update(record.record_id for record in walk(engine, Scroll()))

    found = [record.record_id for record in walk(engine, Scroll(limit=2), meanwhile)]
    moved = Counter(found)
    assert kept <= set(found)
    assert set(moved.values()) == {1}


def test_the_order_is_that_of_images_whole_image_first(engine: Engine) -> None:
    rng = random.Random(2)
    for _ in range(10):
        engine.upsert("c", MODEL, some_upsert(rng))
    found = [(record.image_id, record.level, record.record_id) for record in walk(engine, Scroll(limit=3))]
    if engine.name == "milvus":
        assert [record_id for *_, record_id in found] == sorted(record_id for *_, record_id in found)
        return
    newest = [image.image_id for image in engine.list_images("c", 100, None).images]
    assert found == sorted(found, key=lambda one: (newest.index(one[0]), *one[1:]))


ORDERS = [
    ("created_at", "dcbae", "eabcd"),
    ("name", "bcdae", "adcbe"),
    ("attributes.taken_at", "acbde", "bcaed"),
    ("attributes.size", "bacde", "cabed"),
]


@pytest.mark.parametrize(("by", "descending", "ascending"), ORDERS, ids=[by for by, *_ in ORDERS])
def test_images_are_listed_in_any_order_with_and_without_a_filter(
    engine: Engine, by: str, descending: str, ascending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and times by value, numbers in names too; what has no value comes last, as it was added."""
    if engine.name == "milvus":
        with pytest.raises(RegionSearchError, match="order_by"):
            engine.list_images("c", 5, None, order=ImageOrder(by, ascending=True))
        return
    monkeypatch.setattr(scrolling, "_PICKED", 2)
    vector = some_vectors(random.Random(1), 1, 1)
    for image_id, name, attributes in [
        ("e", "", {}),
        ("a", "img_1.jpg", {"taken_at": "2024-05-01T12:00:00", "size": "7"}),
        ("b", "IMG_10.jpg", {"taken_at": "2024-05-01T11:30:00+02:00", "size": "1e3"}),
        ("c", "img_9.jpg", {"taken_at": "2024-05-01T10:00:00Z", "size": "-3"}),
        ("d", "IMG_2.jpg", {}),
    ]:
        image = StoredImage(image_id, name, 9, 9, "image/png", 1, attributes=attributes)
        engine.upsert(
            "c", MODEL, Upsert([image], [Record(f"{image_id}-r", image_id, Level.REGION, area=5)], vector)
        )
    for order, expected in ((ImageOrder(by), descending), (ImageOrder(by, ascending=True), ascending)):
        for wanted in (Filter(), Filter(min_area=1)):
            found, after = "", None
            for _ in range(3):
                page = engine.list_images("c", 2, after, wanted=wanted, order=order)
                found += "".join(one.image_id for one in page.images)
                after = page.next_key
            assert (found, after) == (expected, None)


def test_vectors_come_along_and_a_page_ends_before_what_does_not_fit(engine: Engine) -> None:
    rng = random.Random(3)
    for _ in range(5):
        engine.upsert("c", MODEL, some_upsert(rng))
    page = engine.scroll("c", Scroll(include_vectors=True))
    ids = [record.record_id for record in page.stored.records]
    stored = engine.get_records("c", ids, [], masks=False, vectors=True)
    by_id = dict(zip((record.record_id for record in stored.records), stored.vectors, strict=True))  # type: ignore[arg-type]
    np.testing.assert_array_equal(page.stored.vectors, [by_id[name] for name in ids])
    part = engine.scroll("c", Scroll(), budget=ResponseBudget(400))
    assert 0 < len(part.stored.records) < len(ids)
    rest = engine.scroll("c", Scroll(after=part.next_place))
    assert [r.record_id for r in (*part.stored.records, *rest.stored.records)] == ids
    with pytest.raises(RegionSearchError) as caught:
        engine.scroll("c", Scroll(), budget=ResponseBudget(10))
    assert caught.value.kind is Kind.TOO_LARGE


def test_milvus_names_what_it_does_instead_of_filtered_lists(engine: Engine) -> None:
    if engine.name != "milvus":
        assert engine.list_images("c", 5, None, wanted=Filter(tags=("a",))).images == ()
        return
    with pytest.raises(RegionSearchError, match="Scroll") as caught:
        engine.list_images("c", 5, None, wanted=Filter(tags=("a",)))
    assert caught.value.kind is Kind.UNIMPLEMENTED


async def test_scroll_and_count_over_grpc(stub) -> None:
    await ingest(stub, 6)
    wanted = search_pb2.Filter(tags=["odd"])
    found, request = [], search_pb2.ScrollRequest(collection="default", filter=wanted, page_size=5)
    while True:
        page = await stub.Scroll(request)
        found += [record.record_id for record in page.records]
        if not page.next_page_token:
            break
        request.page_token, request.page_size = page.next_page_token, 4
    assert len(found) == len(set(found)) == 12
    request.page_token = ""
    facet = search_pb2.Facet(tags=True)
    counts = await stub.Count(
        search_pb2.CountRequest(collection="default", level=search_pb2.LEVEL_IMAGE, facets=[facet])
    )
    assert (counts.record_count, counts.image_count) == (6, 6)
    assert [(one.value, one.record_count) for one in counts.facets[0].values] == [("even", 3), ("odd", 3)]
    images = await stub.ListImages(search_pb2.ListImagesRequest(collection="default", filter=wanted))
    assert (len(images.images), images.total_count) == (3, 3)
    request.page_token = (await stub.Scroll(request)).next_page_token
    request.filter.tags[0] = "even"
    assert await failing(stub.Scroll(request)) == (Kind.INVALID_ARGUMENT, "page_token")
    for facets, field in (
        ([search_pb2.Facet()], "facets[0]"),
        ([search_pb2.Facet(tags=True, attribute="a")], "facets[0]"),
        ([facet] * 17, "facets"),
        ([search_pb2.Facet(tags=True, limit=-1)], "facets[0].limit"),
    ):
        call = stub.Count(search_pb2.CountRequest(collection="default", facets=facets))
        assert (await failing(call))[1] == field
    late = search_pb2.ScrollRequest(collection="default", min_seq=10**9)
    assert (await failing(stub.Scroll(late)))[0] is Kind.FAILED_PRECONDITION
    await stub.DeleteCollection(search_pb2.DeleteCollectionRequest(name="default"))
    await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO))
    request.filter.tags[0] = "odd"
    assert (await failing(stub.Scroll(request)))[0] is Kind.ABORTED
