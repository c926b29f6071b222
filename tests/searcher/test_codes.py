"""Binary codes that are trained on request, and searches that compare nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import search_pb2
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index import code_training
from services.searcher.embedded.index.binary import Codec, train_codec
from services.searcher.queries import Deletion, Filter, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection
from tests.searcher.clusters import DIMENSION, MODEL, clustered, fill, search
from tests.searcher.conftest import failing, search_request, unit_vectors, upsert_request
from tests.searcher.test_replicas import receive, replica_in, writer_in

ITQ = CodeSpec(CodeMethod.ITQ, 48)
VECTORS = clustered(600)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is trained for a moment: what it is good for does not matter."""
    monkeypatch.setattr(code_training, "_STEPS", 20)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    """Six hundred vectors in a collection without codes."""
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=256))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, VECTORS, batch=50)
    yield engine
    engine.close()


def codec_of(engine: EmbeddedEngine) -> Codec:
    codec = engine._collections.find("c").codec
    assert codec is not None
    return codec


def by_codes(codec: Codec, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    signs = (np.unpackbits(codec.encode(some), axis=1) * 2.0 - 1 for some in (vectors, query[np.newaxis]))
    rows, (asked,) = signs
    return (rows @ asked / len(asked)).astype(np.float32)


@pytest.mark.parametrize(
    "spec", [ITQ, CodeSpec(CodeMethod.LEARNED, 64), CodeSpec(CodeMethod.PCA_ROTATION, 24)]
)
def test_codes_alone_rank_by_their_distance(engine: EmbeddedEngine, spec: CodeSpec, few_steps: None) -> None:
    trained = engine.train_codes("c", spec)
    assert trained.codes == replace(spec, trained_seq=engine.last_write())
    expected = by_codes(codec_of(engine), VECTORS[7], VECTORS)
    hits = search(engine, VECTORS[7], codes_only=True, limit=50)
    assert [hit.score for hit in hits] == sorted(expected, reverse=True)[:50]
    assert all(hit.score == expected[int(hit.record.record_id[1:])] for hit in hits)


def test_new_rows_have_codes_and_deleted_ones_are_gone(engine: EmbeddedEngine) -> None:
    engine.train_codes("c", ITQ)
    search(engine, VECTORS[0], codes_only=True)  # whose codes of the growing segment are kept
    more = clustered(30, seed=5)
    fill(engine, more, batch=30, first=1000)
    found = search(engine, more[3], codes_only=True, limit=5)
    assert found[0].score == 1.0
    assert "r1003" in {hit.record.record_id for hit in found}
    engine.delete("c", Deletion(record_ids=["r1003"]))
    found = search(engine, more[3], codes_only=True, limit=700)
    assert len(found) == 629
    assert "r1003" not in {hit.record.record_id for hit in found}


def test_pages_filters_and_groups_are_those_of_every_search(engine: EmbeddedEngine) -> None:
    """Few bits, so that many rows tie."""
    engine.train_codes("c", CodeSpec(CodeMethod.ITQ, 8))
    nothing = np.empty((0, DIMENSION), np.float32)
    asked = Query(VECTORS[:1], nothing, limit=37, codes_only=True, filter=Filter(tags=("even",)))
    found, page = [], engine.search("c", MODEL, [asked])[0]
    while True:
        found += page.hits
        if not page.more:
            break
        after = page.after or page.hits[-1].position
        asked = replace(asked, after=after, skipped=len(found), seq=page.seq, shown=page.shown)
        page = engine.search("c", MODEL, [asked])[0]
    assert len({hit.record.record_id for hit in found}) == len(found) == 300
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    images = search(engine, VECTORS[0], codes_only=True, group_by_image=True, limit=100)
    assert len(images) == 12
    negated = Query(VECTORS[:1], VECTORS[1:2], limit=600, codes_only=True)
    relevant = engine.search("c", MODEL, [negated])[0].hits
    codec = codec_of(engine)
    nearer = by_codes(codec, VECTORS[0], VECTORS) >= by_codes(codec, VECTORS[1], VECTORS)
    assert {int(hit.record.record_id[1:]) for hit in relevant} == set(np.flatnonzero(nearer))


def test_trained_codes_outlive_a_restart(engine: EmbeddedEngine, tmp_path: Path) -> None:
    engine.train_codes("c", ITQ)
    before = search(engine, VECTORS[9], codes_only=True)
    engine.close()
    again = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=256))
    try:
        assert search(again, VECTORS[9], codes_only=True) == before
    finally:
        again.close()


def test_trained_codes_come_back_with_a_collection_that_is_restored(engine: EmbeddedEngine) -> None:
    engine.train_codes("c", ITQ)
    before = search(engine, VECTORS[9], codes_only=True)
    engine.snapshot("s")
    engine.delete_collection("c")
    engine.restore("s", "c")
    assert search(engine, VECTORS[9], codes_only=True) == before
    codes = engine.get_collection("c").codes
    assert codes is not None
    assert codes.trained_seq > 0


def test_what_cannot_be_trained_is_said(engine: EmbeddedEngine) -> None:
    with pytest.raises(RegionSearchError, match="regionsearch codes train") as caught:
        search(engine, VECTORS[0], codes_only=True)
    assert (caught.value.kind, caught.value.field) == (Kind.FAILED_PRECONDITION, "codes_only")
    with pytest.raises(RegionSearchError, match=r"set binary_codes\.bits to 48"):
        engine.train_codes("c", CodeSpec(CodeMethod.ITQ, 256))
    engine.create_collection(Collection("few", MODEL))
    fill(engine, VECTORS[:63], "few")
    with pytest.raises(RegionSearchError, match="has 63 records; 48-bit codes are trained on 64") as caught:
        engine.train_codes("few", ITQ)
    assert caught.value.kind is Kind.FAILED_PRECONDITION


@pytest.mark.parametrize("codes", [None, CodeSpec(CodeMethod.PCA_ROTATION, 48, 20)])
def test_training_replaces_faster_indexes_of_before(
    tmp_path: Path, codes: CodeSpec | None, few_steps: None
) -> None:
    rows = {"chunk_rows": 500, "ann_above": 1000, "ann_rows": 1000, "codes_rows": 1000}
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, **rows))
    try:
        engine.create_collection(Collection("c", MODEL, codes))
        vectors = clustered(2000)
        fill(engine, vectors)
        engine.run_maintenance()
        built = [segment.index for segment in engine.stats("c")[0].segments if segment.index != "growing"]
        assert set(built) == {"codes" if codes else "ivf"}
        engine.train_codes("c", CodeSpec(CodeMethod.LEARNED, 64, 20))
        assert search(engine, vectors[5])[0].record.record_id == "r5", "meanwhile"
        engine.run_maintenance()
        segments = [view.segment for view in engine._collections.find("c").index.state.views]
        coded = [segment for segment in segments if segment.kind == "codes"]
        assert coded
        assert all(segment.codec is codec_of(engine) for segment in coded)
        assert {segment.kind for segment in segments} <= {"codes", "flat"}
        assert search(engine, vectors[5])[0].record.record_id == "r5"
        assert search(engine, vectors[5], codes_only=True)[0].score == 1.0
    finally:
        engine.close()


def test_a_head_that_is_missing_is_named_without_the_searchers_folder(tmp_path: Path) -> None:
    spec = CodeSpec(CodeMethod.LEARNED, 16, head="other.npz")
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path))
    try:
        with pytest.raises(
            RegionSearchError, match=r"other.npz in the searcher's embedded.heads_f"
        ) as caught:
            engine.create_collection(Collection("c", MODEL, codes=spec))
    finally:
        engine.close()
    assert "No such file" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_head_from_a_file_needs_no_training(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((16, DIMENSION)), random.standard_normal(16)
    np.savez(tmp_path / "heads" / "head.npz", weight=weight, bias=bias)
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path))
    try:
        made = engine.create_collection(
            Collection("c", MODEL, CodeSpec(CodeMethod.LEARNED, 16, 10, "head.npz"))
        )
        assert made.codes is not None
        assert made.codes.trained_seq > 0
        (tmp_path / "heads" / "head.npz").unlink()  # the collection has it
        fill(engine, VECTORS[:10])
        assert search(engine, VECTORS[4], codes_only=True)[0].score == 1.0
    finally:
        engine.close()


def test_a_replica_takes_trained_codes_over(tmp_path: Path, few_steps: None) -> None:
    writer, replica = writer_in(tmp_path / "writer"), replica_in(tmp_path / "replica")
    try:
        writer.create_collection(Collection("c", MODEL))
        fill(writer, VECTORS, batch=100)
        feed = writer.follow(replica.position())
        receive(feed, replica)
        for spec in (ITQ, CodeSpec(CodeMethod.LEARNED, 64)):
            writer.train_codes("c", spec)
            assert receive(feed, replica) == ["changes"]
            assert replica.get_collection("c") == writer.get_collection("c")
            mine, theirs = (search(one, VECTORS[9], codes_only=True) for one in (writer, replica))
            assert mine == theirs
        with pytest.raises(RegionSearchError, match="read replica"):
            replica.train_codes("c", ITQ)
        feed.close()
    finally:
        writer.close()
        replica.close()


def stretched(count: int, seed: int) -> np.ndarray:
    """Vectors as models make them: around a mean, and along few directions more than along others."""
    shape = np.random.default_rng(7)
    directions = shape.standard_normal((12, DIMENSION)) * np.linspace(2, 0.2, 12)[:, np.newaxis]
    mean, random = shape.standard_normal(DIMENSION), np.random.default_rng(seed)
    vectors = random.standard_normal((count, 12)) @ directions + mean
    vectors += 0.3 * random.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_learned_head_keeps_more_neighbours_than_itq() -> None:
    vectors, queries = stretched(1500, 0), stretched(100, 1)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    recalls = []
    for spec in (ITQ, replace(ITQ, method=CodeMethod.LEARNED)):
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):  # as in a searcher
            codec = train_codec(spec, vectors)
        scores = np.stack([by_codes(codec, query, vectors) for query in queries])
        found = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))
    assert recalls[1] > recalls[0] + 0.02


async def test_codes_are_trained_and_searched_over_grpc(stub, few_steps: None) -> None:
    for number in range(20):
        await stub.Upsert(upsert_request(f"image{number}", unit_vectors(4, seed=number)))
    codes = search_pb2.BinaryCodes(method=search_pb2.BinaryCodes.METHOD_LEARNED, bits=32)
    answer = await stub.TrainCodes(search_pb2.TrainCodesRequest(collection="default", binary_codes=codes))
    assert answer.collection.binary_codes.trained_seq == answer.seq
    assert answer.collection.binary_codes.rerank_factor == 10
    found = await stub.Search(search_request(unit_vectors(4, seed=3)[1:2], codes_only=True))
    assert found.results[0].hits[0].score == 1.0
    wrong = {
        "binary_codes.head": search_pb2.BinaryCodes(method=3, head="head.npz"),
        "binary_codes.method": search_pb2.BinaryCodes(bits=16),
        "binary_codes.bits": search_pb2.BinaryCodes(method=2, bits=12),
    }
    for field, message in wrong.items():
        request = search_pb2.TrainCodesRequest(collection="default", binary_codes=message)
        assert await failing(stub.TrainCodes(request)) == (Kind.INVALID_ARGUMENT, field)
