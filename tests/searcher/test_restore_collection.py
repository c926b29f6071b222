"""One collection of a snapshot comes back while the others stay and reads go on; snapshots by schedule."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import threading
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from regionsearch.errors import Kind, RegionSearchError
from services.searcher import snapshot_schedule
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Deletion
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.random_ops import LIMITS, MODEL, some_query, some_update, some_upsert
from tests.searcher.test_replicas import content, receive, replica_in, some_query_all, writer_in

QUERIES = [some_query(random.Random(1)) for _ in range(20)]


def seen(engine: EmbeddedEngine, name: str) -> list[object]:
    """All that can be read of a collection, without what names this very one."""
    pages = [page for query in QUERIES for page in engine.search(name, MODEL, [query])]
    hits = [[(hit.record, hit.image, hit.score) for hit in page.hits] for page in pages]
    stored = engine.get_records(name, [], [f"image{i}" for i in range(6)], masks=True, vectors=True)
    found = engine.get_collection(name)
    vectors = None if stored.vectors is None else stored.vectors.tolist()
    counts = (found.image_count, found.record_count, found.model, found.codes)
    return [hits, stored.records, vectors, engine.list_images(name, 100, None).images, counts]


def changed(engine: EmbeddedEngine, name: str, rng: random.Random) -> None:
    for _ in range(5):
        engine.upsert(name, MODEL, some_upsert(rng))
    engine.update_images(name, [some_update(rng)], LIMITS)
    engine.delete(name, Deletion(image_ids=("image1", "image4")))


@pytest.fixture
def writer(tmp_path: Path):
    with contextlib.closing(writer_in(tmp_path / "writer", page_ttl_s=0.0)) as engine:
        for name in ("photos", "other"):
            engine.create_collection(Collection(name, MODEL))
            changed(engine, name, random.Random(name))
        yield engine


@pytest.mark.parametrize("deleted", [False, True], ids=["present", "deleted"])
def test_one_collection_comes_back_and_the_others_stay(
    writer: EmbeddedEngine, tmp_path: Path, deleted: bool
) -> None:
    before = seen(writer, "photos")
    writer.snapshot("one")
    rng = random.Random(2)
    for name in ("photos", "other"):
        changed(writer, name, rng)
    other, last = seen(writer, "other"), writer.last_write()
    with contextlib.closing(replica_in(tmp_path / "replica")) as replica:
        feed = writer.follow(replica.position())
        receive(feed, replica)
        if deleted:
            writer.delete_collection("photos")
        else:
            assert seen(writer, "photos") != before
        seq, count = writer.restore("one", "photos")
        assert (seen(writer, "photos"), seen(writer, "other")) == (before, other)
        assert count == 1 and seq > last
        assert [one.name for one in writer.list_collections()] == ["other", "photos"]
        assert [one.collection for one in writer.stats(None)] == ["other", "photos"]
        receive(feed, replica)
        assert content(replica) == content(writer)
        assert (seen(replica, "photos"), seen(replica, "other")) == (before, other)
        feed.close()
    writer.run_maintenance()
    writer.upsert("photos", MODEL, some_upsert(rng))
    after = seen(writer, "photos")
    writer.close()
    with contextlib.closing(writer_in(tmp_path / "writer")) as reopened:
        assert (seen(reopened, "photos"), seen(reopened, "other")) == (after, other)


def test_reads_and_writes_go_on_while_a_collection_comes_back(writer: EmbeddedEngine) -> None:
    writer.snapshot("one")
    failures: list[BaseException] = []
    stop = threading.Event()

    def work(action) -> None:
        while not stop.is_set():
            try:
                action()
            except BaseException as error:
                failures.append(error)

    def maintain() -> None:
        try:
            writer.run_maintenance()
        except RegionSearchError as error:  # its thread comes back later
            if error.kind is not Kind.NOT_FOUND:
                raise

    rng = random.Random(3)
    actions = [
        lambda: writer.search("photos", MODEL, [some_query_all()]),
        lambda: writer.list_images("photos", 10, None),
        lambda: writer.upsert("photos", MODEL, some_upsert(rng)),
        maintain,
    ]
    threads = [threading.Thread(target=work, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for _ in range(5):
        writer.restore("one", "photos")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_restore_that_fails_or_dies_leaves_everything_as_it_was(
    writer: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.snapshot("one")
    before = seen(writer, "photos")
    with pytest.raises(RegionSearchError, match="no collection 'absent'") as caught:
        writer.restore("one", "absent")
    assert (caught.value.kind, caught.value.field) == (Kind.NOT_FOUND, "collection")

    def full(*_: object) -> None:
        raise RegionSearchError(Kind.STORAGE_FULL, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "take_name", full)
        with pytest.raises(RegionSearchError, match="no space"):
            writer.restore("one", "photos")
        assert seen(writer, "photos") == before
        patch.setattr(writer, "delete_collection", full)  # as a process that dies
        with pytest.raises(RegionSearchError, match="no space"):
            writer.restore("one", "photos")
    assert [one.name for one in writer.list_collections()] == ["other", "photos"]
    writer.close()
    with contextlib.closing(writer_in(tmp_path / "writer", page_ttl_s=0.0)) as reopened:
        assert seen(reopened, "photos") == before
        for _ in range(3):
            reopened.run_maintenance()
        (rows,) = reopened._database.writer.execute("SELECT COUNT(*) FROM collection").fetchone()
        assert rows == 2, "what was half there is gone"
        reopened.restore("one", "photos")


async def scheduled(engine: EmbeddedEngine, settings: EmbeddedSettings, until) -> None:
    snapshots = BoundedExecutor("snapshots and restores", 1, 0)
    task = asyncio.create_task(snapshot_schedule.take_on_schedule(engine, snapshots, settings, retry_s=0.05))
    try:
        async with asyncio.timeout(30):
            while not until():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(snapshots.close)


def names_in(engine: EmbeddedEngine) -> list[str]:
    return [one.name for one in engine.list_snapshots()]


async def test_after_a_total_loss_the_last_scheduled_snapshot_brings_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(snapshot_schedule, "dated", lambda prefix="": f"{prefix}{next(numbers):03d}")
    archive = (tmp_path / "archive").as_uri()
    settings = EmbeddedSettings(folder=tmp_path / "searcher", snapshot_url=archive, snapshot_keep=2)
    often = settings.model_copy(update={"snapshot_every_s": 0.05})
    rng = random.Random(4)
    with contextlib.closing(EmbeddedEngine(settings)) as engine:
        engine.create_collection(Collection("photos", MODEL))
        engine.snapshot("by-hand")
        changed(engine, "photos", rng)
        await scheduled(engine, often, lambda: "scheduled-003" in names_in(engine))
        kept = names_in(engine)
        assert len([name for name in kept if name.startswith("scheduled-")]) in (
            2,
            3,
        )  # one may just have come
        assert "by-hand" in kept and "scheduled-000" not in kept
        before = seen(engine, "photos")
        assert REGISTRY.get_sample_value("regionsearch_snapshot_timestamp_seconds") > 0
        # The last one counts after a restart as well: none is due.
        once_a_day = settings.model_copy(update={"snapshot_every_s": 86_400.0})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await scheduled(engine, once_a_day, lambda: False)
        assert names_in(engine) == kept
    shutil.rmtree(tmp_path / "searcher")
    with contextlib.closing(EmbeddedEngine(settings)) as engine:
        newest = next(name for name in names_in(engine) if name.startswith("scheduled-"))
        engine.restore(newest)
        assert seen(engine, "photos") == before
        changed(engine, "photos", rng)


async def test_a_scheduled_snapshot_that_fails_is_counted_and_taken_later(
    writer: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = REGISTRY.get_sample_value("regionsearch_snapshot_failures_total")
    snapshot, tries = writer.snapshot, itertools.count()

    def at_first_full(name: str):
        if next(tries) < 2:
            raise RegionSearchError(Kind.STORAGE_FULL, "no space")
        return snapshot(name)

    monkeypatch.setattr(writer, "snapshot", at_first_full)
    settings = EmbeddedSettings(snapshot_every_s=3600)
    await scheduled(writer, settings, lambda: names_in(writer))
    assert REGISTRY.get_sample_value("regionsearch_snapshot_failures_total") == failures + 2
