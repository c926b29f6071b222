"""Filters on tags and attributes: a write costs the reading of what it wrote, and nothing goes stale."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index import filters
from services.searcher.embedded.store import lookups
from services.searcher.queries import Deletion, Filter, Query
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher.conftest import MODEL, unit_vectors
from tests.searcher.oracle import Oracle
from tests.searcher.random_ops import some_condition


def write_of(image_id: str, label: str, records: dict[str, str], tags: tuple[str, ...] = ()) -> Upsert:
    """An image with a label, and records with labels of their own, or none where they are empty."""
    made = [
        Record(name, image_id, Level.REGION, attributes={"label": own} if own else {})
        for name, own in records.items()
    ]
    image = StoredImage(image_id, tags=tags, attributes={"label": label} if label else {})
    return Upsert([image], made, unit_vectors(len(made), seed=len(image_id)))


def found(engine: EmbeddedEngine, wanted: Filter) -> set[str]:
    vectors = unit_vectors(1)
    (page,) = engine.search("default", MODEL, [Query(vectors, vectors[:0], filter=wanted, limit=1000)])
    return {hit.record.record_id for hit in page.hits}


def test_filters_follow_every_kind_of_write(engine: EmbeddedEngine) -> None:
    rng, oracle = random.Random(5), Oracle()
    filters = [Filter(attributes=(("label", value),)) for value in "ab"]
    filters += [Filter(tags=("x",)), Filter(exclude_tags=("x", "y")), Filter(tags=("x", "y"))]
    filters.append(Filter(tags=("x",), attributes=(("label", "a"),), exclude_image_ids=("i1",)))
    filters += [Filter(conditions=(some_condition(rng, ["label"]),)) for _ in range(20)]
    for turn in range(120):
        image_id = f"i{rng.randint(0, 9)}"
        names = {f"{image_id}-{turn}-{n}": rng.choice(["", "a", "b"]) for n in range(rng.randint(1, 5))}
        write = write_of(
            image_id, rng.choice(["", "a", "b"]), names, tuple(rng.sample("xy", rng.randint(0, 2)))
        )
        if rng.random() < 0.4 and image_id in oracle.images:  # further records of an image that is there
            write = Upsert([], write.records, write.vectors)
        if rng.random() < 0.1:
            engine.delete("default", Deletion((image_id,)))
            oracle.delete_images([image_id])
        else:
            engine.upsert("default", MODEL, write)
            oracle.upsert(write)
        if turn % 10 == 9:
            engine.run_maintenance()
        wanted = rng.choice(filters)
        assert found(engine, wanted) == {record.record_id for _, record, _ in oracle.passing(wanted)}


def test_filter_terms_read_only_new_rows_after_a_write(engine, monkeypatch) -> None:
    for number in range(40):
        names = {f"i{number}-{n}": "ab"[n % 2] for n in range(30)}
        engine.upsert("default", MODEL, write_of(f"i{number}", "a", names, ("x",)))
    wanted = Filter(tags=("x",), attributes=(("label", "a"),))
    assert len(found(engine, wanted)) == 600
    evaluated: list[int] = []
    mask = filters.Owners.mask
    monkeypatch.setattr(
        filters.Owners, "mask", lambda self, image, key: evaluated.append(len(key)) or mask(self, image, key)
    )
    owners: list[int] = []
    attribute_owners = lookups.attribute_owners

    def counted(*arguments):
        given = attribute_owners(*arguments)
        owners.append(sum(map(len, given)))
        return given

    monkeypatch.setattr(lookups, "attribute_owners", counted)
    engine.upsert("default", MODEL, write_of("new", "a", {"n-0": "", "n-1": "b"}, ("x",)))
    assert len(found(engine, wanted)) == 601
    assert sum(evaluated) == 4, "two rows for each of two terms"
    assert sum(owners) == 2, "the image, and the record with another value"
    evaluated.clear()
    assert len(found(engine, wanted)) == 601
    assert evaluated == []


def test_a_filter_of_many_attributes_is_evaluated_once(engine, monkeypatch) -> None:
    attributes = {f"name{n}": "v" for n in range(64)}
    names = [f"r{n}" for n in range(200)]
    records = [Record(name, "i", Level.REGION) for name in names]
    image = StoredImage("i", attributes=attributes)
    engine.upsert("default", MODEL, Upsert([image], records, unit_vectors(200)))
    wanted = Filter(attributes=tuple(attributes.items()))
    assert len(found(engine, wanted)) == 200
    asked: list[object] = []
    monkeypatch.setattr(lookups, "attribute_owners", lambda *arguments: asked.append(arguments))
    assert len(found(engine, wanted)) == 200
    assert asked == []


def test_filter_terms_are_evicted_when_they_take_too_much_memory(engine, monkeypatch) -> None:
    monkeypatch.setattr(filters, "_KEPT_BYTES", 1000)
    tags = tuple(f"t{n}" for n in range(20))
    engine.upsert("default", MODEL, write_of("i", "", {f"r{n}": "" for n in range(100)}, tags))
    for tag in tags:
        assert len(found(engine, Filter(tags=(tag,)))) == 100
    assert len(engine._collections.find("default").terms._kept) < 12


@pytest.mark.parametrize("images", [np.array([3, 1, 3, 2, 1, 3]), np.array([1, 1, 2, 5, 5, 9])])
def test_rows_of_images_are_found_in_any_order_of_writing(images) -> None:
    from services.searcher.embedded.index.columns import Columns
    from services.searcher.embedded.rows import Rows

    columns = Columns(8)
    rows = Rows(
        record_rowid=np.arange(6), image_rowid=images, level=np.ones(6, np.uint8), area=np.zeros(6, np.int64),
        predicted_iou=np.zeros(6, np.float32), stability_score=np.zeros(6, np.float32),
        created_ms=np.zeros(6, np.int64), vectors=unit_vectors(6),
    )  # fmt: skip
    columns.write(rows, np.ones(6, np.int64), 0, 4)
    columns.by_image(4)
    columns.write(rows, np.ones(6, np.int64), 4, 6)
    for wanted in ([1], [3, 5], [4], [], [9, 1, 2, 1]):
        for visible in (0, 3, 6):
            expected = np.flatnonzero(np.isin(images[:visible], wanted))
            got = columns.rows_of_images(np.array(wanted, np.int64), visible)
            np.testing.assert_array_equal(got, expected)
