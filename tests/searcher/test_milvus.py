"""What is Milvus' own: its errors, its consistency, its limits, several searchers of one server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="the milvus engine needs pymilvus")

from pymilvus import MilvusException

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import CancellationToken
from services.searcher.milvus import rows as milvus_rows
from services.searcher.milvus import session as session_module
from services.searcher.milvus import tables
from services.searcher.milvus.access import EVENTUAL, STRONG, Access, TableGoneError, explained
from services.searcher.milvus.session import Session, waits_for
from services.searcher.milvus.source import MilvusSource
from services.searcher.milvus.tables import placement_of
from services.searcher.queries import Deletion, Filter, Query
from services.searcher.settings import MilvusSettings
from services.searcher.types import Collection, Level, ModelIdentity, Record, RleMask, StoredImage, Upsert
from tests.searcher.milvus_server import open_milvus

MODEL = ModelIdentity("open_clip", "test", "digest", 8)


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "disconnected graph, deadline of a timeout"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (Refusal(grpc.StatusCode.DEADLINE_EXCEEDED), Kind.UNAVAILABLE),
        (Refusal(grpc.StatusCode.UNAVAILABLE), Kind.UNAVAILABLE),
        (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED), Kind.OVERLOADED),
        (Refusal(grpc.StatusCode.PERMISSION_DENIED), Kind.FAILED_PRECONDITION),
        (Refusal(grpc.StatusCode.UNAUTHENTICATED), Kind.FAILED_PRECONDITION),
        (Refusal(grpc.StatusCode.UNIMPLEMENTED), Kind.INTERNAL),
        (MilvusException(grpc.StatusCode.UNAVAILABLE, "after retries"), Kind.UNAVAILABLE),
        (MilvusException(8, "rate limit exceeded"), Kind.OVERLOADED),
        (MilvusException(9, "quota exceeded"), Kind.STORAGE_FULL),
        (MilvusException(101, "collection not loaded"), Kind.UNAVAILABLE),
        (MilvusException(100, "collection not found"), Kind.NOT_FOUND),
        (MilvusException(1401, "privilege not permitted"), Kind.FAILED_PRECONDITION),
        (MilvusException(65535, "try again", retriable=True), Kind.UNAVAILABLE),
        (MilvusException(1100, "a disconnected graph cannot connect, timeout"), Kind.INTERNAL),
    ],
    ids=str,
)
def test_errors_of_milvus_are_told_by_their_codes(raised: Exception, kind: Kind) -> None:
    with pytest.raises(RegionSearchError) as refused, explained():
        raise raised
    assert refused.value.kind is kind
    assert isinstance(refused.value, TableGoneError) == (kind is Kind.NOT_FOUND)
    assert (refused.value.retry_after_s is not None) == (kind in {Kind.UNAVAILABLE, Kind.OVERLOADED})


def test_a_call_has_the_smaller_of_the_setting_and_the_callers_time() -> None:
    def asked(timeout: float) -> float:
        return timeout

    with ThreadPoolExecutor(1) as pool:
        access = Access(SimpleNamespace(), 30.0, pool)
        assert access.call(asked) == 30.0
        assert access.with_cancellation(CancellationToken(100.0)).call(asked) == 30.0
        assert access.with_cancellation(CancellationToken(2.0)).call(asked) <= 2.0
        gone = CancellationToken()
        gone.cancel()
        with pytest.raises(RegionSearchError) as refused:
            access.with_cancellation(gone).call(asked)
    assert refused.value.kind is Kind.CANCELLED


def test_reads_wait_for_no_more_than_the_process_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MOST", 2)
    now = 0.0
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now)
    clock = SimpleNamespace(skew_us=0, after=lambda: 5_000)
    session = Session(clock)
    assert session.freshness() == EVENTUAL
    session.add(["a"])
    assert session.written() == 5_000
    assert session.freshness() == session.freshness_of(["b", "a"]) == waits_for(5_000)
    assert session.freshness(9_000) == waits_for(9_000)
    assert session.freshness_of(["b"]) == EVENTUAL
    session.add(["c", "d"])  # too many to remember: any may have been written
    assert session.freshness_of(["b"]) == waits_for(5_000)
    now = 61.0
    assert session.freshness_of(["a", "d"]) == EVENTUAL
    session.failed()
    assert session.freshness() == STRONG
    session.written()
    assert session.freshness() == waits_for(5_000)
    clock.skew_us = 1
    assert session.freshness() == STRONG


def test_what_milvus_cannot_hold_is_refused_by_its_field() -> None:
    placement = placement_of("p_", Collection("c", MODEL, created_ms=1), tables.LAYOUT)
    old = placement_of("p_", Collection("c", MODEL), 1)
    image = StoredImage("i")
    vector = np.ones(8, np.float32)

    def field(make: Callable[[], object]) -> str | None:
        with pytest.raises(RegionSearchError) as refused:
            make()
        assert refused.value.kind is Kind.TOO_LARGE
        return refused.value.field

    big = Record("r", "i", Level.REGION, mask=RleMask(1, 1, b"0" * 70_000))
    row = milvus_rows.record_row(big, image, vector, 1, placement)
    assert max(map(len, row["mask"])) <= 65_535
    assert milvus_rows.record_of(row, masks=True) == big
    assert field(lambda: milvus_rows.record_row(big, image, vector, 1, old)) == "records.mask"
    small = Record("r", "i", Level.REGION, mask=RleMask(1, 1, b"0" * 700))
    assert milvus_rows.record_of(milvus_rows.record_row(small, image, vector, 1, old), masks=True) == small
    wordy = Record("r", "i", Level.REGION, attributes={"a": "é" * 40_000})
    assert field(lambda: milvus_rows.record_row(wordy, image, vector, 1, placement)) == "records.attributes"
    tagged = StoredImage("i", tags=("é" * 3000,))
    assert field(lambda: milvus_rows.record_row(small, tagged, vector, 1, placement)) == "images.tags"
    assert field(lambda: milvus_rows.image_row(StoredImage("i", attributes={"a": "x" * 70_000}))) == "images"


def test_a_milvus_that_does_not_answer_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(RegionSearchError) as refused:
            open_milvus(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=1.0)
    assert refused.value.kind is Kind.UNAVAILABLE
    assert time.monotonic() - began < 10


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, MODEL.dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def one_image(rng: np.random.Generator, name: str, regions: int, **image: object) -> Upsert:
    records = [Record(f"{name}-{i}", name, Level.REGION, (0, 0, 1, 1), area=1) for i in range(regions)]
    return Upsert([StoredImage(name, **image)], records, unit(rng, regions))


@pytest.fixture
def searchers(milvus: str) -> Iterator[tuple]:
    """Two searchers of one server."""
    both = open_milvus(milvus), open_milvus(milvus)
    both[0].create_collection(Collection("shared", MODEL))
    yield both
    for collection in both[0].list_collections():
        both[0].delete_collection(collection.name)
    for one in both:
        one.close()


@pytest.mark.slow
def test_two_searchers_give_the_same_answers_while_one_of_them_writes(searchers: tuple) -> None:
    writer, other = searchers
    rng = np.random.default_rng(3)
    done: list[int] = []

    def write() -> None:
        for number in range(12):
            done.append(writer.upsert("shared", MODEL, one_image(rng, f"w{number}", 3)).seq)  # noqa: PERF401  # is read

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        if done:
            last, written = done[-1], len(done)
            query = Query(unit(rng, 1), unit(rng, 0), limit=100)
            found = [s.search("shared", MODEL, [query], min_seq=last)[0] for s in searchers]
            for page in found:
                assert {f"w{number}" for number in range(written)} <= {h.image.image_id for h in page.hits}
    thread.join()
    query = Query(unit(rng, 2), unit(rng, 1), limit=7, group_by_image=True)
    pages = [s.search("shared", MODEL, [query], min_seq=done[-1])[0] for s in searchers]
    assert pages[0].hits == pages[1].hits != ()
    assert done == sorted(done)
    with pytest.raises(RegionSearchError) as refused:  # no clock but Milvus' own counts
        other.search("shared", MODEL, [query], min_seq=done[-1] + 120_000_000)
    assert refused.value.kind is Kind.FAILED_PRECONDITION
    assert other.delete("shared", Deletion(image_ids=("w3",))).record_count == 3
    assert writer.token_key() == other.token_key()


@pytest.mark.slow
def test_a_collection_that_another_searcher_made_again_is_noticed(searchers: tuple) -> None:
    one, other = searchers
    rng = np.random.default_rng(4)
    first = one.upsert("shared", MODEL, one_image(rng, "a", 2))
    assert other.get_collection("shared").record_count in {0, 2}
    one.delete_collection("shared")
    with pytest.raises(RegionSearchError) as refused:
        other.search("shared", MODEL, [Query(unit(rng, 1), unit(rng, 0))])
    assert refused.value.kind is Kind.NOT_FOUND
    one.create_collection(Collection("shared", MODEL))
    assert other.upsert("shared", MODEL, one_image(rng, "b", 2)).generation != first.generation
    assert [image.image_id for image in other.list_images("shared", 9, None).images] == ["b"]
    with pytest.raises(RegionSearchError) as refused:
        other.upsert("shared", MODEL, one_image(rng, "c", 1), first.generation)
    assert refused.value.kind is Kind.ABORTED


@pytest.mark.slow
def test_large_masks_and_tags_come_back_from_milvus(searchers: tuple) -> None:
    one, _ = searchers
    rng = np.random.default_rng(5)
    record = Record("r", "i", Level.REGION, (0, 0, 1, 1), RleMask(9, 9, b"0P" * 100_000), area=1)
    image = StoredImage("i", tags=("t" * 4096,))
    one.upsert("shared", MODEL, Upsert([image], [record], unit(rng, 1)))
    (page,) = one.search("shared", MODEL, [Query(unit(rng, 1), unit(rng, 0), include_masks=True)])
    assert page.hits[0].record.mask == record.mask
    stored = one.get_records("shared", ["r"], [], masks=True, vectors=False)
    assert stored.records[0].mask == record.mask
    found = one.search("shared", MODEL, [Query(unit(rng, 1), unit(rng, 0), filter=Filter(tags=image.tags))])
    assert found[0].hits[0].record.mask is None


@pytest.mark.slow
@pytest.mark.parametrize("effort", [1.0, 0.25, float("inf")])
def test_an_hnsw_with_a_filter_that_few_pass_misses_none(milvus: str, effort: float) -> None:
    engine = open_milvus(
        milvus, index_type="HNSW", index_params={"M": 8, "efConstruction": 64}, search_params={"ef": 16}
    )
    rng = np.random.default_rng(6)
    engine.create_collection(Collection("approximate", MODEL))
    try:
        for number in range(20):
            tags = ("rare",) if number % 5 == 0 else ("usual",)
            engine.upsert("approximate", MODEL, one_image(rng, f"i{number}", 50, tags=tags))
        rare = Filter(tags=("rare",))
        query = Query(unit(rng, 1), unit(rng, 0), filter=rare, limit=200, effort=effort)
        (page,) = engine.search("approximate", MODEL, [query])
        assert len(page.hits) == 200
        assert not page.more
        scores = [hit.score for hit in page.hits]
        assert scores == sorted(scores, reverse=True)
    finally:
        engine.delete_collection("approximate")
        engine.close()


@pytest.mark.slow
def test_no_search_sees_old_and_new_records_of_an_image_together(searchers: tuple) -> None:
    writer, other = searchers
    rng = np.random.default_rng(7)
    seen: list[set[str]] = []
    stop = threading.Event()

    def generation(number: int) -> Upsert:
        records = [Record(f"g{number}-{i}", "i", Level.REGION, (0, 0, 1, 1), area=1) for i in range(3)]
        return Upsert([StoredImage("i")], records, unit(rng, 3))

    seq = writer.upsert("shared", MODEL, generation(0)).seq
    vectors = unit(rng, 1)

    def read() -> None:
        while not stop.is_set():
            (page,) = other.search("shared", MODEL, [Query(vectors, vectors[:0])], min_seq=seq)
            seen.append({hit.record.record_id.split("-")[0] for hit in page.hits})

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 8):
            writer.upsert("shared", MODEL, generation(number))
    finally:
        stop.set()
        reader.join()
    assert seen
    assert all(len(generations) <= 1 for generations in seen)


@pytest.mark.parametrize("refused", [(), ("BITMAP",), ("BITMAP", "INVERTED", "")])
def test_what_filters_read_is_indexed_as_far_as_the_server_can(refused: tuple[str, ...]) -> None:
    made: dict[str, str] = {}

    def create_index(table: str, params: list, **options: object) -> None:
        for one in params:
            if one.field_name != "vector" and one.index_type in refused:
                raise MilvusException(1100, f"invalid index type: {one.index_type}")
            made[one.field_name] = one.index_type

    client = SimpleNamespace(
        create_collection=lambda *_, **__: None,
        load_collection=lambda *_, **__: None,
        create_index=create_index,
    )
    with ThreadPoolExecutor(1) as pool:
        tables.create_records_table(Access(client, 30.0, pool), "t", 8, MilvusSettings(index_type="HNSW"))
    assert made.pop("vector") == "HNSW"
    wanted = {
        "image_id": "INVERTED",
        "created_ms": "INVERTED",
        "seq": "INVERTED",
        "level": "BITMAP",
        "tags": "BITMAP",
    }
    assert made == {
        field: "" if kind in refused else kind for field, kind in wanted.items() if len(refused) < 3
    }


class ShortIndex:
    """An approximate index that finds only half of what is asked for, in front of some rows."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows
        self.efforts: list[float] = []

    def search(self, table: str, data: list, limit: int, search_params: dict, **options: object) -> list:
        self.efforts.append(search_params["params"]["ef"])
        return [[{"entity": row, "distance": 1.0 - i / 100} for i, row in enumerate(self.rows[: limit // 2])]]

    def query(self, table: str, output_fields: list[str], **options: object) -> list[dict]:
        return [{"count(*)": len(self.rows)}] if output_fields == ["count(*)"] else self.rows


@pytest.mark.parametrize(("most", "complete"), [(100, True), (10, False)])
def test_an_index_that_finds_too_few_is_not_taken_for_all_that_there_is(most: int, complete: bool) -> None:
    rng = np.random.default_rng(8)
    rows = [
        {"record_id": f"r{i}", "image_id": "i", "level": 2, "vector": v} for i, v in enumerate(unit(rng, 40))
    ]
    index = ShortIndex(rows)
    settings = MilvusSettings(index_type="HNSW", search_params={"ef": 50}, max_candidates=most)
    placement = placement_of("p_", Collection("c", MODEL, created_ms=1), tables.LAYOUT)
    with ThreadPoolExecutor(1) as pool:
        access = Access(index, 30.0, pool)
        query = Query(unit(rng, 1), unit(rng, 0), effort=2.0)
        found = MilvusSource(access, placement, query, EVENTUAL, settings).best(5)
        assert found.complete == complete
        assert len(found.key) == (40 if complete else 3)
        assert index.efforts == [100]
        every = MilvusSource(access, placement, replace(query, effort=float("inf")), EVENTUAL, settings)
        every.best(5)
        assert index.efforts == ([100] if complete else [100, 800])
