"""Changes and deletions of stored images, the same in every engine."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST
from services.searcher.engine import Engine
from services.searcher.queries import Deletion, Filter, ImageUpdate, Query
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher.engines import engine
from tests.searcher.random_ops import (
    LIMITS,
    MODEL,
    some_vectors,
)

__all__ = ["engine"]  # the fixture


def tagged_and_listed(engine: Engine, wanted: Filter) -> list[str]:
    """Images that a search with a filter finds."""
    vectors = some_vectors(random.Random(0), 1, 1)
    (page,) = engine.search("c", MODEL, [Query(vectors, vectors[:0], filter=wanted, group_by_image=True)])
    return sorted(hit.image.image_id for hit in page.hits)


def two_images(engine: Engine) -> None:
    images = [StoredImage(f"i{n}", "old.jpg", tags=("a", "b"), attributes={"k": "v"}) for n in range(2)]
    records = [
        Record(f"i{n}-0", f"i{n}", Level.REGION, attributes={"k": "own"} if n else {}) for n in range(2)
    ]
    engine.upsert("c", MODEL, Upsert(images, records, some_vectors(random.Random(1), 2, 2)))


def test_metadata_of_an_image_changes_without_its_vectors(engine: Engine) -> None:
    two_images(engine)
    before = engine.get_records("c", [], ["i0"], masks=True, vectors=True)
    assert tagged_and_listed(engine, Filter(tags=("b",))) == ["i0", "i1"]
    update = ImageUpdate(
        "i0", name="new.jpg", remove_tags=("b",), add_tags=("c", "a"), set_attributes={"k": "w", "x": "y"}
    )
    done = engine.update_images("c", [update, ImageUpdate("nobody", name="n")], LIMITS)
    (image,) = done.images
    assert (image.name, image.tags, image.attributes) == ("new.jpg", ("a", "c"), {"k": "w", "x": "y"})
    after = engine.get_records("c", [], ["i0"], masks=True, vectors=True)
    assert after.records == before.records
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.images == (image,)
    assert after.images[0].created_ms == before.images[0].created_ms
    # Filters see it at once, though the same ones have been asked for before.
    assert tagged_and_listed(engine, Filter(tags=("b",))) == ["i1"]
    assert tagged_and_listed(engine, Filter(tags=("c",))) == ["i0"]
    assert tagged_and_listed(engine, Filter(exclude_tags=("c",))) == ["i1"]
    assert tagged_and_listed(engine, Filter(attributes=(("k", "w"),))) == ["i0"]
    assert tagged_and_listed(engine, Filter(attributes=(("k", "v"),))) == []
    assert tagged_and_listed(engine, Filter(attributes=(("k", "own"),))) == ["i1"]
    vectors = some_vectors(random.Random(0), 1, 1)
    assert engine.search("c", MODEL, [Query(vectors, vectors[:0])], min_seq=done.seq)[0].hits
    replaced = ImageUpdate("i0", tags=(), remove_attributes=("k", "x"), set_attributes={"k": "again"})
    (image,) = engine.update_images("c", [replaced], LIMITS).images
    assert (image.name, image.tags, image.attributes) == ("new.jpg", (), {"k": "again"})


def test_an_update_that_is_too_large_or_out_of_date_changes_nothing(engine: Engine) -> None:
    two_images(engine)
    (read,) = engine.get_records("c", [], ["i0"], masks=False, vectors=False, images_only=True).images
    assert engine.update_images("c", [ImageUpdate("i0", add_tags=("c",), as_read=read)], LIMITS).images

    def refused(*updates: ImageUpdate) -> Kind:
        with pytest.raises(RegionSearchError) as caught:
            engine.update_images("c", updates, LIMITS)
        return caught.value.kind

    with pytest.raises(RegionSearchError) as caught:
        engine.delete("c", Deletion(("i0", "i1"), as_read=read))
    assert caught.value.kind is Kind.ABORTED
    with pytest.raises(RegionSearchError) as caught:
        engine.delete("c", Deletion(("i1",), as_read=StoredImage("gone")))
    assert caught.value.kind is Kind.ABORTED
    assert len(engine.list_images("c", 9, None).images) == 2
    late = ImageUpdate("i0", name="late", as_read=read)
    assert refused(ImageUpdate("i1", add_tags=("late",)), late) is Kind.ABORTED
    assert refused(ImageUpdate("i0", add_tags=("1", "2", "3"))) is Kind.TOO_LARGE
    assert refused(ImageUpdate("i0", tags=("x" * 20, "y" * 20, "z" * 20))) is Kind.TOO_LARGE
    assert tagged_and_listed(engine, Filter(tags=("late", "1"))) == []
    assert {image.name for image in engine.list_images("c", 9, None).images} == {"old.jpg"}
    with pytest.raises(RegionSearchError) as caught:
        engine.update_images("nothing", [ImageUpdate("i0", name="n")], LIMITS)
    assert caught.value.kind is Kind.NOT_FOUND
    (present,) = engine.get_records("c", [], ["i0"], masks=False, vectors=False, images_only=True).images
    assert engine.delete("c", Deletion(("i0",), as_read=present)).image_count == 1


def test_an_update_without_a_difference_is_not_written(engine: Engine) -> None:
    two_images(engine)
    if engine.name == "milvus":
        pytest.skip("its numbers are times")
    before = engine.stats("c")[0].seq
    same = ImageUpdate("i0", name="old.jpg", add_tags=("b",), set_attributes={"k": "v"})
    assert engine.update_images("c", [same], LIMITS).seq == before
    assert engine.stats("c")[0].seq == before


def test_an_image_beyond_the_limits_can_shrink_but_not_grow(engine: Engine) -> None:
    many = tuple(f"t{n}" for n in range(20))
    engine.upsert("c", MODEL, Upsert([StoredImage("i", tags=many)], [], np.empty((0, 4), np.float32)))
    (image,) = engine.update_images("c", [ImageUpdate("i", remove_tags=("t0",), name="n")], LIMITS).images
    assert image.tags == many[1:]
    with pytest.raises(RegionSearchError) as caught:
        engine.update_images("c", [ImageUpdate("i", add_tags=("t0",))], LIMITS)
    assert (caught.value.kind, caught.value.field) == (Kind.TOO_LARGE, "tags")


def test_deleting_by_filter_takes_emptied_images_along_and_counts_the_others(engine: Engine) -> None:
    images = [StoredImage(f"i{n}", tags=("odd",) if n % 2 else ()) for n in range(30)]
    records = [Record(f"i{n}-{k}", f"i{n}", Level.REGION, area=k) for n in range(30) for k in range(n % 5)]
    count = len(records)
    engine.upsert("c", MODEL, Upsert(images, records, some_vectors(random.Random(2), count, count)))
    answer = engine.delete("c", Deletion(filter=Filter(max_area=1)))
    gone = [record for record in records if record.area <= 1]
    emptied = {f"i{n}" for n in range(30) if n % 5 in (1, 2)}
    assert (answer.record_count, answer.image_count) == (len(gone), len(emptied))
    left = {image.image_id: image.region_count for image in engine.list_images("c", 100, None).images}
    # An image that never had records was not emptied.
    assert left == {f"i{n}": max(0, n % 5 - 2) for n in range(30) if f"i{n}" not in emptied}
    stored = engine.get_records("c", [], list(left), masks=False, vectors=False)
    assert sorted(r.record_id for r in stored.records) == sorted(r.record_id for r in records if r.area > 1)


def test_images_of_one_idempotency_key_are_those_of_one_request(engine: Engine) -> None:
    """Also where several requests of the key write at the same time."""

    def write(name: str, key: str, request: str) -> Kind | None:
        attributes = {IDEMPOTENCY_KEY: key, IDEMPOTENCY_REQUEST: request}
        image = StoredImage(name, "a.jpg", attributes=attributes)
        record = Record(f"{name}-image", name, Level.IMAGE)
        vectors = some_vectors(random.Random(3), 1, 1)
        try:
            engine.upsert("c", MODEL, Upsert([image], [record], vectors, skip_existing=True, check_key=True))
        except RegionSearchError as error:
            return error.kind
        return None

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(write, [f"i{n}" for n in range(8)], ["one"] * 8, [f"r{n}" for n in range(8)]))
    assert Counter(ended) == {None: 1, Kind.ALREADY_EXISTS: 7}
    (image,) = engine.list_images("c", 10, None).images
    owner = image.attributes[IDEMPOTENCY_REQUEST]
    assert write("another", "one", owner) is None
    assert write(image.image_id, "one", "other") is None  # nothing is written
    engine.delete("c", Deletion((image.image_id, "another")))
    assert write("later", "one", "of a later request") is None
