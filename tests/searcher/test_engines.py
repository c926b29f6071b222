"""One contract, every engine: the embedded one, the same with a GPU's faults, and Milvus."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.engine import Engine, SearchCall
from services.searcher.migrate import migrate
from services.searcher.queries import Deletion, Filter, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Level,
    ModelIdentity,
    Record,
    RleMask,
    StoredImage,
    Upsert,
)
from tests.searcher.engines import engine
from tests.searcher.milvus_server import open_milvus
from tests.searcher.oracle import Oracle
from tests.searcher.random_ops import (
    IMAGES,
    LIMITS,
    MODEL,
    check_page,
    following,
    some,
    some_filter,
    some_query,
    some_update,
    some_upsert,
    some_vectors,
)

__all__ = ["engine"]  # the fixture


def test_answers_as_the_oracle(engine: Engine) -> None:
    rng, oracle = random.Random(7), Oracle()
    for turn in range(12):
        for _ in range(2):
            write = some_upsert(rng)
            assert list(engine.upsert("c", MODEL, write).skipped) == oracle.upsert(write)
        for update in [some_update(rng) for _ in range(turn % 4)]:
            changed = oracle.update(update)
            found = engine.update_images("c", [update], LIMITS).images
            assert [image.tags for image in found] == ([] if changed is None else [changed.tags])
        if turn % 3 == 2:
            wanted = some_filter(rng, least=1)
            gone = [record.record_id for _, record, _ in oracle.passing(wanted)]
            assert engine.delete("c", Deletion(filter=wanted)).record_count == len(gone)
            oracle.delete_records(gone, drop_empty=True)
        if turn % 4 == 3:
            images = some(rng, IMAGES, 2)
            records = some(rng, [f"{image}-{number}" for image in IMAGES for number in range(5)], 6)
            engine.delete("c", Deletion(images, records))
            oracle.delete_records(records, drop_empty=False)
            oracle.delete_images(images)
        for query in [some_query(rng) for _ in range(6)]:
            ranking, skipped = oracle.search(query), 0
            while True:
                (page,) = engine.search("c", MODEL, [query])
                check_page(page, ranking, skipped, query.limit)
                if not page.more:
                    break
                skipped += len(page.hits)
                query = following(query, page)
        collection = engine.get_collection("c")
        assert collection.image_count == len(oracle.images)
        assert collection.record_count == sum(len(entry.records) for entry in oracle.images.values())
        listed = {image.image_id: image.region_count for image in engine.list_images("c", 100, None).images}
        assert listed == {
            image_id: sum(r.level == Level.REGION for r, _ in entry.records.values())
            for image_id, entry in oracle.images.items()
        }


def test_searches_find_together_what_they_find_alone(engine: Engine) -> None:
    rng = random.Random(11)
    for _ in range(8):
        engine.upsert("c", MODEL, some_upsert(rng))
        engine.update_images("c", [some_update(rng)], LIMITS)
    queries = [some_query(rng) for _ in range(45)]
    calls = [SearchCall(MODEL, queries[at : at + 1 + at % 2]) for at in range(0, 45, 3)]
    calls += [
        SearchCall(MODEL, [replace(query, fold_similarity=0.95, diversity=0.3)]) for query in queries[:3]
    ]
    while calls:
        expected = [engine.search("c", call.model, call.queries) for call in calls]
        assert list(engine.search_together("c", calls)) == expected
        calls = [
            SearchCall(MODEL, [following(call.queries[0], pages[0])])
            for call, pages in zip(calls, expected, strict=True)
            if len(pages) == 1 and pages[0].more
        ]


def test_an_excluded_record_never_comes_back_and_a_selective_filter_fills_the_page(engine: Engine) -> None:
    rng = random.Random(1)
    images = [StoredImage(f"i{n}", tags=("rare",) if n % 10 == 0 else ()) for n in range(100)]
    records = [Record(f"i{n}-{k}", f"i{n}", Level.REGION, area=k) for n in range(100) for k in range(4)]
    engine.upsert("c", MODEL, Upsert(images, records, some_vectors(rng, 400, 400)))
    query = Query(some_vectors(rng, 1, 1), np.empty((0, 4), np.float32), limit=40)
    first = [hit.record.record_id for hit in engine.search("c", MODEL, [query])[0].hits]
    without = replace(query, filter=Filter(exclude_record_ids=tuple(first), exclude_image_ids=("i50",)))
    second = engine.search("c", MODEL, [without])[0].hits
    assert len(second) == 40
    assert not set(first) & {hit.record.record_id for hit in second}
    assert "i50" not in {hit.image.image_id for hit in second}
    rare = engine.search("c", MODEL, [replace(query, filter=Filter(tags=("rare",)))])[0]
    assert len(rare.hits) == 40
    assert not rare.more
    assert {hit.image.image_id for hit in rare.hits} == {f"i{n}" for n in range(0, 100, 10)}


def test_what_is_stored_comes_back(engine: Engine) -> None:
    image = StoredImage("i", 'a "name".jpg', 64, 48, "image/jpeg", 999, ("t1", "t2"), {"k": 'v"\\'})
    record = Record(
        "i-1", "i", Level.REGION, (1.0, 2.0, 3.5, 4.0), RleMask(48, 64, b"abc"), 7, 0.5, 0.25, {"x": "y"}
    )
    vectors = some_vectors(random.Random(0), 1, 1)
    engine.upsert("c", MODEL, Upsert([image], [record], vectors))
    stored = engine.get_records("c", ["i-1", "nothing"], ["i", "nobody"], masks=True, vectors=True)
    assert stored.records == (record,)
    assert stored.images[0].created_ms > 0
    assert stored.images == (replace(image, created_ms=stored.images[0].created_ms, region_count=1),)
    np.testing.assert_allclose(stored.vectors, vectors, atol=1e-3)
    (page,) = engine.search(
        "c", MODEL, [Query(vectors, vectors[:0], filter=Filter(attributes=(("k", 'v"\\'),)))]
    )
    assert page.hits[0].record == replace(record, mask=None)


def test_confusable_names_are_different_collections(engine: Engine) -> None:
    for number, name in enumerate(("a-b", "a_b", "a__b", "ahb")):
        engine.create_collection(Collection(name, MODEL))
        engine.upsert(name, MODEL, Upsert([StoredImage(f"i{number}")], [], np.empty((0, 4), np.float32)))
    for number, name in enumerate(("a-b", "a_b", "a__b", "ahb")):
        assert [i.image_id for i in engine.list_images(name, 10, None).images] == [f"i{number}"]
    assert [found.name for found in engine.list_collections()] == sorted(("a-b", "a_b", "a__b", "ahb", "c"))


def test_errors_have_the_same_kinds_in_every_engine(engine: Engine) -> None:
    def kind_of(call) -> Kind:
        with pytest.raises(RegionSearchError) as caught:
            call()
        return caught.value.kind

    other = ModelIdentity("open_clip", "other", "digest", 4)
    vectors = some_vectors(random.Random(0), 1, 1)
    query = Query(vectors, vectors[:0])
    assert kind_of(lambda: engine.search("none", MODEL, [query])) is Kind.NOT_FOUND
    assert kind_of(lambda: engine.search("c", other, [query])) is Kind.MODEL_MISMATCH
    assert kind_of(lambda: engine.create_collection(Collection("c", MODEL))) is Kind.ALREADY_EXISTS
    orphan = Upsert([], [Record("r", "nowhere", Level.REGION)], vectors)
    assert kind_of(lambda: engine.upsert("c", MODEL, orphan)) is Kind.INVALID_ARGUMENT
    if engine.name == "milvus":
        assert kind_of(lambda: engine.snapshot("x")) is Kind.UNIMPLEMENTED
        assert kind_of(lambda: engine.restore("x")) is Kind.UNIMPLEMENTED
        codes = CodeSpec(CodeMethod.PCA_ROTATION, 8)
        coded, next_one = Collection("x", MODEL, codes), Collection("x", MODEL, replaces="c")
        assert kind_of(lambda: engine.create_collection(coded)) is Kind.UNIMPLEMENTED
        assert kind_of(lambda: engine.create_collection(next_one)) is Kind.UNIMPLEMENTED
        assert kind_of(lambda: engine.replace_collection("c", "x", "y")) is Kind.UNIMPLEMENTED
        assert kind_of(lambda: engine.train_codes("c", codes)) is Kind.UNIMPLEMENTED
        by_codes = replace(query, codes_only=True)
        assert kind_of(lambda: engine.search("c", MODEL, [by_codes])) is Kind.UNIMPLEMENTED
    engine.delete_collection("c")
    assert kind_of(lambda: engine.get_collection("c")) is Kind.NOT_FOUND
    assert engine.list_collections() == []
    engine.create_collection(Collection("c", other))
    assert engine.get_collection("c").record_count == 0


def test_a_collection_keeps_what_it_was_made_with(engine: Engine) -> None:
    """What a reindex copies, and what the gateway goes by."""
    model = replace(MODEL, features='{"level": 1, "weight": 0.5}')
    made = Collection("described", model, everything='{"pointsPerSide": 9}', recall_target=0.9)
    engine.create_collection(made)
    found = engine.get_collection("described")
    assert replace(found, created_ms=0) == made
    vectors = some_vectors(random.Random(0), 1, 1)
    with pytest.raises(RegionSearchError, match="features") as caught:
        engine.search("described", MODEL, [Query(vectors, vectors[:0])])
    assert caught.value.kind is Kind.MODEL_MISMATCH


def walk(engine: Engine) -> None:
    rng = random.Random(3)
    for _ in range(8):
        engine.upsert("c", MODEL, some_upsert(rng))


def same_answers(one: Engine, other: Engine) -> None:
    rng = random.Random(5)
    for query in [some_query(rng) for _ in range(30)]:
        first, second = (engine.search("c", MODEL, [query])[0] for engine in (one, other))
        assert [(hit.record, hit.score, hit.image) for hit in first.hits] == [
            (hit.record, hit.score, hit.image) for hit in second.hits
        ]


def test_migration_keeps_every_answer(engine: Engine, tmp_path: Path) -> None:
    walk(engine)
    target = EmbeddedEngine(EmbeddedSettings(folder=tmp_path / "target"))
    moved = migrate(engine, target, "c")
    assert moved.images == engine.get_collection("c").image_count > 0
    assert moved.records == engine.get_collection("c").record_count
    same_answers(engine, target)
    again = migrate(engine, target, "c")
    assert (again.images, again.records) == (0, 0)
    target.close()


@pytest.mark.slow
def test_migration_to_milvus_keeps_every_answer(milvus: str, tmp_path: Path) -> None:
    source, target = EmbeddedEngine(EmbeddedSettings(folder=tmp_path)), open_milvus(milvus)
    source.create_collection(Collection("c", MODEL))
    walk(source)
    migrate(source, target, "c")
    same_answers(source, target)
    target.delete_collection("c")
    source.close()
    target.close()
