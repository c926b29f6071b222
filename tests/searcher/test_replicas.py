"""Read replicas: the same store and the same answers, a moment later; refused writes; takeovers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.replica import ReplicaEngine
from services.searcher.engine import BehindError, Feed, SearchCall
from services.searcher.queries import Deletion, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection
from tests.searcher import clusters, random_ops
from tests.searcher.random_ops import LIMITS, MODEL, some_filter, some_query, some_update, some_upsert

TABLES = {
    "collection": "id, name, spec, created_ms, image_count, record_count, dropped, checksum",
    "image": "ordinal, collection, image_id, name, tags, attributes, created_ms, region_count, added,"
    " removed, checksum, place",
    "image_tag": "*",
    "record": "*",
    "attribute": "*",
    "vector": "*",
    "state": "seq, epoch, token_key",
}


def writer_in(folder: Path, **settings: object) -> EmbeddedEngine:
    return EmbeddedEngine(EmbeddedSettings(folder=folder, **{"chunk_rows": 8, **settings}))


def replica_in(folder: Path, **settings: object) -> ReplicaEngine:
    options = EmbeddedSettings(folder=folder, chunk_rows=8, **settings)
    return ReplicaEngine(options, lambda error: None, "writer:50053")


def receive(feed: Feed, replica: ReplicaEngine) -> list[str]:
    """Takes all that there is; what that was."""
    kinds = []
    while (file := feed.following(0.0)) is not None:
        incoming = replica.incoming(snapshot=file.snapshot)
        incoming.write(file.content.read())
        replica.take(incoming, snapshot=file.snapshot)
        kinds.append("snapshot" if file.snapshot else "changes")
    return kinds


def content(engine: EmbeddedEngine) -> dict[str, list[tuple]]:
    with engine._database.reading() as connection:
        return {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table}"), key=repr)
            for table, columns in TABLES.items()
        }


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[tuple[EmbeddedEngine, ReplicaEngine]]:
    """A writer with the collections c and d, and a replica that has nothing yet."""
    writer, replica = writer_in(tmp_path / "writer"), replica_in(tmp_path / "replica")
    for name in "cd":
        writer.create_collection(Collection(name, MODEL))
    yield writer, replica
    writer.close()
    replica.close()


def test_a_replica_holds_and_answers_what_its_writer_does(
    engines: tuple[EmbeddedEngine, ReplicaEngine],
) -> None:
    follow_at_random(*engines, seed=0, steps=15)


def test_a_search_for_a_write_that_a_replica_lacks_fails_alone(
    engines: tuple[EmbeddedEngine, ReplicaEngine],
) -> None:
    writer, replica = engines
    rng = random.Random(1)
    writer.upsert("c", MODEL, some_upsert(rng))
    receive(writer.follow(replica.position()), replica)
    missing = writer.upsert("c", MODEL, some_upsert(rng)).seq
    query = some_query(rng)
    calls = [
        SearchCall(MODEL, [query]),
        SearchCall(MODEL, [query], min_seq=missing),
        SearchCall(MODEL, [replace(query, seq=missing)]),
    ]
    found, *behind = replica.search_together("c", calls)
    assert found == replica.search("c", MODEL, [query])
    assert [type(error) for error in behind] == [BehindError] * 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_a_replica_holds_and_answers_what_its_writer_does_for_long(
    engines: tuple[EmbeddedEngine, ReplicaEngine], seed: int
) -> None:
    follow_at_random(*engines, seed=seed, steps=100)


def follow_at_random(writer: EmbeddedEngine, replica: ReplicaEngine, seed: int, steps: int) -> None:
    rng = random.Random(seed)
    writer.upsert("c", MODEL, some_upsert(rng))
    feed = writer.follow(replica.position())
    assert receive(feed, replica) == ["snapshot"]
    for step in range(steps):
        for _ in range(rng.randint(1, 6)):
            name = rng.choice("ccd")
            match rng.choice(["upsert"] * 4 + ["update", "delete", "delete", "filter", "collection"]):
                case "upsert":
                    writer.upsert(name, MODEL, some_upsert(rng))
                case "update":
                    writer.update_images(name, [some_update(rng)], LIMITS)
                case "delete":
                    image = rng.choice(random_ops.IMAGES)
                    chosen = [{"image_ids": (image,)}, {"record_ids": (f"{image}-1", f"{image}-2")}]
                    writer.delete(name, Deletion(**rng.choice(chosen)))
                case "filter":
                    writer.delete(name, Deletion(filter=some_filter(rng, 1)))
                case "collection":
                    writer.delete_collection("d")
                    writer.create_collection(Collection("d", MODEL))
                    writer.upsert("d", MODEL, some_upsert(rng))
        queries = [some_query(rng) for _ in range(3)]
        before = [writer.search("c", MODEL, [query])[0] for query in queries]
        writer.upsert("c", MODEL, some_upsert(rng))  # the second pages are of a state between two batches
        kinds = receive(feed, replica)
        assert kinds and "snapshot" not in kinds
        assert content(replica) == content(writer), f"step {step}"
        for query, first in zip(queries, before, strict=True):
            name = rng.choice("cd")
            assert replica.search(name, MODEL, [query]) == writer.search(name, MODEL, [query])
            if first.more:
                second = random_ops.following(query, first)
                assert replica.search("c", MODEL, [second]) == writer.search("c", MODEL, [second])
    feed.close()


def some_query_all() -> Query:
    return Query(vectors=random_ops.DIRECTIONS[:1], negatives=random_ops.DIRECTIONS[:0], limit=100)


def test_a_replica_goes_on_where_it_was_after_restarts_of_both(tmp_path: Path) -> None:
    rng = random.Random(1)
    writer, replica = writer_in(tmp_path / "writer"), replica_in(tmp_path / "replica")
    writer.create_collection(Collection("c", MODEL))
    assert receive(writer.follow(replica.position()), replica) == ["snapshot"]
    for _ in range(20):
        writer.upsert("c", MODEL, some_upsert(rng))
    for engine in (writer, replica):
        engine.close()
    with (
        contextlib.closing(writer_in(tmp_path / "writer")) as writer,
        contextlib.closing(replica_in(tmp_path / "replica")) as replica,
    ):
        assert replica.filled
        found = replica.list_images("c", 10, None).images
        assert not found, "it serves what it has, also without the writer"
        for _ in range(3):
            writer.upsert("c", MODEL, some_upsert(rng))
            writer.run_maintenance()  # does not yet vacuum what was removed just before the restart
        assert receive(writer.follow(replica.position()), replica) == ["changes"]
        assert content(replica) == content(writer)
        everything = [some_query_all()]
        assert replica.search("c", MODEL, everything) == writer.search("c", MODEL, everything)


def test_a_replica_that_missed_too_much_or_saw_another_past_takes_a_new_copy(tmp_path: Path) -> None:
    rng = random.Random(2)
    writer, replica = writer_in(tmp_path / "writer", page_ttl_s=0.0), replica_in(tmp_path / "replica")
    writer.create_collection(Collection("c", MODEL))
    feed = writer.follow(replica.position())
    receive(feed, replica)
    writer.snapshot("early")

    def change_and_vacuum() -> None:
        for _ in range(5):
            writer.upsert("c", MODEL, some_upsert(rng))
        for _ in range(3):
            writer.run_maintenance()

    change_and_vacuum()
    assert receive(feed, replica) == ["changes"], "what is followed is not vacuumed"
    feed.close()
    change_and_vacuum()
    feed = writer.follow(replica.position())
    assert receive(feed, replica) == ["snapshot"], "the writer has vacuumed what the replica lacks"
    assert content(replica) == content(writer)

    writer.restore("early")
    with pytest.raises(RegionSearchError) as caught:
        feed.following(0.0)
    assert caught.value.kind is Kind.ABORTED
    feed.close()
    feed = writer.follow(replica.position())
    assert receive(feed, replica) == ["snapshot"], "a restored store has another past"
    assert content(replica) == content(writer)
    feed.close()

    older = replace(replica.position(), record_row=0)
    writer.upsert("c", MODEL, some_upsert(rng))
    forked = writer.follow(older)
    assert receive(forked, replica) in (["snapshot"], ["changes"])
    forked.close()
    with pytest.raises(RegionSearchError, match="same version") as caught:
        writer.follow(replace(replica.position(), schema_version=1))
    assert caught.value.kind is Kind.FAILED_PRECONDITION
    writer.close()
    replica.close()


def test_a_replica_refuses_writes_and_says_when_it_is_behind(
    engines: tuple[EmbeddedEngine, ReplicaEngine],
) -> None:
    writer, replica = engines
    receive(writer.follow(replica.position()), replica)
    rng = random.Random(3)
    attempts = [
        lambda: replica.create_collection(Collection("e", MODEL)),
        lambda: replica.delete_collection("c"),
        lambda: replica.replace_collection("c", "d", "e"),
        lambda: replica.upsert("c", MODEL, some_upsert(rng)),
        lambda: replica.update_images("c", [some_update(rng)], LIMITS),
        lambda: replica.delete("c", Deletion(image_ids=("image1",))),
        lambda: replica.restore("x"),
    ]
    for attempt in attempts:
        with pytest.raises(RegionSearchError, match="read replica of writer:50053") as caught:
            attempt()
        assert caught.value.kind is Kind.FAILED_PRECONDITION
    seq = writer.upsert("c", MODEL, some_upsert(rng)).seq
    behind = (
        lambda: replica.search("c", MODEL, [some_query_all()], seq),
        lambda: replica.search("c", MODEL, [replace(some_query_all(), seq=seq)]),
    )
    for attempt in behind:
        with pytest.raises(RegionSearchError, match=f"not yet {seq}") as caught:
            attempt()
        assert caught.value.kind is Kind.UNAVAILABLE
    replica.snapshot("of the replica".replace(" ", "-"))


def test_names_that_are_exchanged_and_collections_made_again_reach_a_replica(
    engines: tuple[EmbeddedEngine, ReplicaEngine],
) -> None:
    writer, replica = engines
    rng = random.Random(4)
    feed = writer.follow(replica.position())
    receive(feed, replica)
    same = some_upsert(rng)
    for name in "cd":
        writer.upsert(name, MODEL, replace(same, images=[replace(i, created_ms=5) for i in same.images]))
    receive(feed, replica)
    assert writer.replace_collection("c", "d", "old") == []
    writer.delete_collection("old")
    writer.create_collection(Collection("old", MODEL))
    writer.upsert("old", MODEL, some_upsert(rng))
    receive(feed, replica)
    assert content(replica) == content(writer)
    assert {one.name for one in replica.list_collections()} == {"c", "old"}
    for name in ("c", "old"):
        assert replica.search(name, MODEL, [some_query_all()]) == writer.search(
            name, MODEL, [some_query_all()]
        )
    with pytest.raises(RegionSearchError, match="no collection 'd'"):
        replica.search("d", MODEL, [some_query_all()])
    feed.close()


def test_a_replica_takes_over_and_others_notice(
    engines: tuple[EmbeddedEngine, ReplicaEngine], tmp_path: Path
) -> None:
    writer, replica = engines
    rng = random.Random(5)
    writer.upsert("c", MODEL, some_upsert(rng))
    receive(writer.follow(replica.position()), replica)
    missed = writer.upsert("c", MODEL, some_upsert(rng)).seq  # and then the writer is lost
    replica.close()
    writer.close()
    with pytest.raises(RegionSearchError, match="data of its own"):
        replica_in(tmp_path / "writer")
    with contextlib.closing(writer_in(tmp_path / "replica")) as successor:
        seq = successor.upsert("c", MODEL, some_upsert(rng)).seq
        assert seq > missed, "no number is given twice"
        with contextlib.closing(replica_in(tmp_path / "second")) as second:
            assert receive(successor.follow(second.position()), second) == ["snapshot"]
            assert content(second) == content(successor)


def test_a_replica_learns_binary_codes_of_its_own(tmp_path: Path) -> None:
    codes = Collection("c", clusters.MODEL, CodeSpec(CodeMethod.ITQ, 16))
    sizes = {"codes_rows": 100, "page_ttl_s": 0.0}
    with contextlib.closing(writer_in(tmp_path / "writer", **sizes)) as writer:
        writer.create_collection(codes)
        for step in range(2):  # the second time it has its codec
            with contextlib.closing(replica_in(tmp_path / "replica", **sizes)) as replica:
                feed = writer.follow(replica.position())
                receive(feed, replica)
                clusters.fill(writer, clusters.clustered(150), first=1000 * step)
                receive(feed, replica)
                for engine in (writer, replica):
                    engine.run_maintenance()
                clusters.fill(writer, clusters.clustered(20, seed=3), first=1000 * step + 500)
                receive(feed, replica)
                kinds = {segment.index for segment in replica.stats("c")[0].segments}
                assert "codes" in kinds
                assert replica.get_collection("c") == writer.get_collection("c")
                feed.close()


def test_damaged_changes_are_refused_and_change_nothing(
    engines: tuple[EmbeddedEngine, ReplicaEngine],
) -> None:
    writer, replica = engines
    feed = writer.follow(replica.position())
    receive(feed, replica)
    writer.upsert("c", MODEL, some_upsert(random.Random(6)))
    file = feed.following(0.0)
    assert file is not None
    data = bytearray(file.content.read())
    vector = writer.get_records("c", [], random_ops.IMAGES, masks=False, vectors=True).vectors
    assert vector is not None and len(vector)
    stored = vector[0].astype(np.float16).tobytes()
    data[data.index(stored)] ^= 1
    before = content(replica)
    incoming = replica.incoming(snapshot=False)
    incoming.write(data)
    with pytest.raises(RegionSearchError, match="checksum") as caught:
        replica.take(incoming, snapshot=False)
    assert caught.value.kind is Kind.DATA_LOSS
    assert content(replica) == before
    feed.close()
