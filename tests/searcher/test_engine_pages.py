"""Pages of hits and of images, the same in every engine: whole, in order, within the size of a response."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.engine import Engine
from services.searcher.queries import Deletion, Query
from services.searcher.response_budget import ResponseBudget
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher.engines import engine
from tests.searcher.random_ops import (
    MODEL,
    following,
    some_vectors,
)

__all__ = ["engine"]  # the fixture


def test_lists_images_page_by_page_newest_first(engine: Engine) -> None:
    """Times that tie, times far apart, images that come and go between two pages."""
    rng = random.Random(11)
    times = [rng.choice([1_000, 1_001, 1_002, 50_000, 1_700_000_000_000]) for _ in range(60)]
    images = [StoredImage(f"i{n}é" if n % 7 == 0 else f"i{n}", created_ms=t) for n, t in enumerate(times)]
    for start in range(0, 60, 20):
        engine.upsert("c", MODEL, Upsert(images[start : start + 20], [], np.empty((0, 4), np.float32)))
    expected = sorted(((i.created_ms, i.image_id) for i in images), reverse=True)
    for limit in (1, 7, 59, 60, 100):
        seen, after = [], None
        while True:
            page = engine.list_images("c", limit, after)
            assert page.total_count == 60
            assert len(page.images) == min(limit, 60 - len(seen))
            seen += [(image.created_ms, image.image_id) for image in page.images]
            if page.next_key is None:
                break
            after = page.next_key
        assert seen == expected
    first = engine.list_images("c", 10, None)
    gone = [image_id for _, image_id in expected[8:13]]  # the last one of the page and some behind it
    engine.delete("c", Deletion(tuple(gone)))
    engine.upsert("c", MODEL, Upsert([StoredImage("new")], [], np.empty((0, 4), np.float32)))
    rest = engine.list_images("c", 100, first.next_key)
    assert [(i.created_ms, i.image_id) for i in rest.images] == expected[13:]
    assert rest.next_key is None
    assert engine.list_images("c", 1, None).images[0].image_id == "new"


def test_no_more_is_read_than_fits_into_the_response(engine: Engine) -> None:
    """One image with long tags would come along with each of its regions."""
    tags = tuple(f"{number:04d}" * 20 for number in range(10))
    images = [StoredImage(f"i{n}", tags=tags) for n in range(3)]
    records = [Record(f"i{n}-{k}", f"i{n}", Level.REGION) for n in range(3) for k in range(4)]
    vectors = some_vectors(random.Random(0), 12, 12)
    engine.upsert("c", MODEL, Upsert(images, records, vectors))
    query = Query(vectors[:1], vectors[:0], limit=5)

    def one_too_much(ask: Callable[[ResponseBudget], object], size: int = 2000) -> None:
        with pytest.raises(RegionSearchError, match="name fewer") as caught:
            ask(ResponseBudget(size, "field", "name fewer"))
        assert caught.value.kind is Kind.TOO_LARGE
        assert ask(ResponseBudget(20_000))

    one_too_much(lambda budget: engine.search("c", MODEL, [query, query], budget=budget), 4000)
    one_too_much(
        lambda budget: engine.get_records(
            "c", [], ["i0", "i1", "i2"], masks=False, vectors=False, budget=budget
        )
    )
    seldom = [f"i{n}-0" for n in range(3)]
    one_too_much(
        lambda budget: engine.get_records("c", seldom, [], masks=False, vectors=False, budget=budget)
    )


def test_a_page_ends_when_the_response_is_full(engine: Engine) -> None:
    rng = random.Random(3)
    images = [StoredImage(f"i{n}", tags=tuple(f"{n}{t:04d}" * 20 for t in range(10))) for n in range(7)]
    records = [Record(f"{i.image_id}-{k}", i.image_id, Level(k + 1)) for i in images for k in range(2)]
    engine.upsert("c", MODEL, Upsert(images, records, some_vectors(rng, 14, 14)))
    query = Query(some_vectors(rng, 1, 1), np.empty((0, 4), np.float32), limit=14)
    (whole,) = engine.search("c", MODEL, [query])
    found, asked = [], query
    while True:
        (page,) = engine.search("c", MODEL, [asked], budget=ResponseBudget(5000))
        assert 1 <= len(page.hits) <= 4
        found += page.hits
        if not page.more:
            break
        asked = following(asked, page)
    assert [(hit.rank, hit.record) for hit in found] == [(hit.rank, hit.record) for hit in whole.hits]
    listed, after = [], None
    while True:
        part = engine.list_images("c", 100, after, ResponseBudget(5000))
        assert 1 <= len(part.images) <= 4
        listed += part.images
        after = part.next_key
        if after is None:
            break
    assert listed == list(engine.list_images("c", 9, None).images)
    grouped = replace(query, group_by_image=True, whole_image_margin=3.0)
    (page,) = engine.search("c", MODEL, [grouped], budget=ResponseBudget(5000))
    assert page.more
    assert all(hit.best_region is not None for hit in page.hits)


def test_an_image_that_would_fill_a_page_alone_is_shown_without_its_tags(engine: Engine) -> None:
    """Of an older store, without limits, under a gateway with small messages."""
    huge = StoredImage("huge", "name", tags=tuple(f"{t:05d}" * 20 for t in range(60)), attributes={"k": "v"})
    records = [Record("huge-0", "huge", Level.IMAGE), Record("huge-1", "huge", Level.REGION)]
    vectors = some_vectors(random.Random(3), 2, 2)
    engine.upsert("c", MODEL, Upsert([huge], records, vectors))
    for size, tags in ((2000, 0), (100_000, 60)):
        (image,) = engine.list_images("c", 9, None, ResponseBudget(size)).images
        assert (image.name, len(image.tags), len(image.attributes)) == ("name", tags, bool(tags))
        query = Query(vectors[:1], vectors[:0], limit=5)
        (page,) = engine.search("c", MODEL, [query], budget=ResponseBudget(size))
        assert [len(hit.image.tags) for hit in page.hits] == [tags, tags]


def test_an_empty_collection_lists_nothing(engine: Engine) -> None:
    page = engine.list_images("c", 10, None)
    assert (page.images, page.next_key, page.total_count) == ((), None, 0)
    assert engine.get_records("c", ["r"], ["i"], masks=True, vectors=True).records == ()


def test_grouping_looks_past_a_crowd_and_pages(engine: Engine) -> None:
    """One image has more of the best records than any first look takes."""
    crowd = [Record(f"crowd-{k:03d}", "crowd", Level.REGION) for k in range(300)]
    others = [Record(f"i{n:02d}-0", f"i{n:02d}", Level.REGION) for n in range(9)]
    images = [StoredImage("crowd"), *(StoredImage(f"i{n:02d}") for n in range(9))]
    query = np.array([[1, 0, 0, 0]], np.float32)
    vectors = np.concatenate([np.repeat(query, 300, 0), np.repeat([[0.6, 0.8, 0, 0]], 9, 0)]).astype(
        np.float32
    )
    engine.upsert("c", MODEL, Upsert(images, [*crowd, *others], vectors))
    asked = Query(query, query[:0], group_by_image=True, limit=4)
    found: list[str] = []
    while True:
        (page,) = engine.search("c", MODEL, [asked])
        found += [hit.image.image_id for hit in page.hits]
        if not page.more:
            break
        asked = following(asked, page)
    assert found == ["crowd", *(f"i{n:02d}" for n in range(9))]


def test_images_whose_whole_stands_for_a_region_let_others_pass(engine: Engine) -> None:
    """Whole images score less than the regions that they stand for, so images behind them may overtake."""
    scores = {
        "a": (0.885, 0.90), "b": (0.88, 0.895), "c": (None, 0.89), "d": (0.84, 0.87), "e": (0.86, 0.861)
    }  # fmt: skip
    records, vectors = [], []
    for image_id, (whole, region) in scores.items():
        for level, score in ((Level.IMAGE, whole), (Level.REGION, region)):
            if score is not None:
                records.append(Record(f"{image_id}-{level.name.lower()}", image_id, level))
                vectors.append([score, np.sqrt(1 - score**2), 0, 0])
    images = [StoredImage(image_id) for image_id in scores]
    engine.upsert("c", MODEL, Upsert(images, records, np.array(vectors, np.float32)))
    query = np.array([[1, 0, 0, 0]], np.float32)
    expected = [
        ("c-region", None), ("a-image", "a-region"), ("b-image", "b-region"), ("d-region", None),
        ("e-image", "e-region"),
    ]  # fmt: skip
    for limit in (1, 2, 3, 5):
        asked = Query(query, query[:0], group_by_image=True, limit=limit)
        found: list[tuple[str, str | None]] = []
        while True:
            (page,) = engine.search("c", MODEL, [asked])
            found += [
                (hit.record.record_id, hit.best_region and hit.best_region.record.record_id)
                for hit in page.hits
            ]
            if not page.more:
                break
            asked = following(asked, page)
        assert found == expected, limit
