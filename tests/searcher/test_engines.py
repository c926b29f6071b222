"""One contract, every engine: the embedded one, the same with a GPU's faults, and Milvus."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import open_store as embedded_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.engine import Engine
from services.searcher.migrate import migrate
from services.searcher.queries import Deletion, Filter, ImageUpdate, Query
from services.searcher.response_budget import ResponseBudget
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
from tests.searcher.fake_gpu import FakeDevice
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


@pytest.fixture(params=["faiss-cpu", "faiss-gpu", pytest.param("milvus", marks=pytest.mark.slow)])
def engine(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if request.param == "milvus":
        made = open_milvus(request.getfixturevalue("milvus"))
    else:
        if request.param == "faiss-gpu":
            monkeypatch.setattr(embedded_module, "choose_device", lambda settings: FakeDevice())
        made = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=4, gpu_rows=8))
    made.create_collection(Collection("c", MODEL))
    assert made.name == request.param
    yield made
    if made.name == "milvus":  # the server goes on
        for collection in made.list_collections():
            made.delete_collection(collection.name)
    made.close()


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


def test_what_is_said_about_an_image_changes_without_its_vectors(engine: Engine) -> None:
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


def test_a_change_that_is_too_much_or_too_late_changes_nothing(engine: Engine) -> None:
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


def test_a_change_that_changes_nothing_is_not_written(engine: Engine) -> None:
    two_images(engine)
    if engine.name == "milvus":
        pytest.skip("its numbers are times")
    before = engine.stats("c")[0].seq
    same = ImageUpdate("i0", name="old.jpg", add_tags=("b",), set_attributes={"k": "v"})
    assert engine.update_images("c", [same], LIMITS).seq == before
    assert engine.stats("c")[0].seq == before


def test_an_image_of_before_the_limits_can_be_made_less_but_not_more(engine: Engine) -> None:
    many = tuple(f"t{n}" for n in range(20))
    engine.upsert("c", MODEL, Upsert([StoredImage("i", tags=many)], [], np.empty((0, 4), np.float32)))
    (image,) = engine.update_images("c", [ImageUpdate("i", remove_tags=("t0",), name="n")], LIMITS).images
    assert image.tags == many[1:]
    with pytest.raises(RegionSearchError) as caught:
        engine.update_images("c", [ImageUpdate("i", add_tags=("t0",))], LIMITS)
    assert (caught.value.kind, caught.value.field) == (Kind.TOO_LARGE, "tags")


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


def test_nothing_is_read_beyond_the_room_of_its_answer(engine: Engine) -> None:
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


def test_confusable_names_are_different_collections(engine: Engine) -> None:
    for number, name in enumerate(("a-b", "a_b", "a__b", "ahb")):
        engine.create_collection(Collection(name, MODEL))
        engine.upsert(name, MODEL, Upsert([StoredImage(f"i{number}")], [], np.empty((0, 4), np.float32)))
    for number, name in enumerate(("a-b", "a_b", "a__b", "ahb")):
        assert [i.image_id for i in engine.list_images(name, 10, None).images] == [f"i{number}"]
    assert [found.name for found in engine.list_collections()] == sorted(("a-b", "a_b", "a__b", "ahb", "c"))


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


def test_errors(engine: Engine) -> None:
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
        coded = Collection("coded", MODEL, CodeSpec(CodeMethod.PCA_ROTATION, 8))
        assert kind_of(lambda: engine.create_collection(coded)) is Kind.UNIMPLEMENTED
    engine.delete_collection("c")
    assert kind_of(lambda: engine.get_collection("c")) is Kind.NOT_FOUND
    assert engine.list_collections() == []
    engine.create_collection(Collection("c", other))
    assert engine.get_collection("c").record_count == 0


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


def test_moving_keeps_every_answer(engine: Engine, tmp_path: Path) -> None:
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
def test_moving_to_milvus_keeps_every_answer(milvus: str, tmp_path: Path) -> None:
    source, target = EmbeddedEngine(EmbeddedSettings(folder=tmp_path)), open_milvus(milvus)
    source.create_collection(Collection("c", MODEL))
    walk(source)
    migrate(source, target, "c")
    same_answers(source, target)
    target.delete_collection("c")
    source.close()
    target.close()
