"""Group commit, failures that stay with their caller, and calls beyond the limit."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.embedded.rows import Change
from services.searcher.embedded.store import collection_rows, reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.group_commit import GroupCommitter


class Bench:
    """A committer whose first write waits until it is told to go on."""

    def __init__(self, folder: Path, **options) -> None:
        self.database = Database(folder / "records.sqlite")
        self.commits = 0
        self.database.writer.set_trace_callback(self._count)
        self.applied: list[int] = []
        self.fatal: list[BaseException] = []
        self.committer = GroupCommitter(self.database, self._apply, self.fatal.append, **options)
        self.go_on = threading.Event()
        self.reached = threading.Event()

    def _count(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    def _apply(self, change: Change) -> None:
        self.applied.append(change.seq)

    def slow(self, connection):
        self.reached.set()
        self.go_on.wait(60)
        return self.quick(connection)

    def quick(self, connection):
        seq = collection_rows.next_seq(connection)
        return seq, Change(1, seq)

    def broken(self, connection):
        collection_rows.next_seq(connection)
        raise RegionSearchError(Kind.INVALID_ARGUMENT, "not like this")

    def close(self) -> None:
        self.committer.close()
        self.database.close()


@pytest.fixture
def bench(tmp_path: Path):
    made = Bench(tmp_path)
    yield made
    made.close()


def test_group_commit_shares_a_transaction_and_a_bad_write_fails_alone(bench: Bench) -> None:
    first = bench.committer.submit(bench.slow)
    assert bench.reached.wait(60)
    good = [bench.committer.submit(bench.quick) for _ in range(10)]
    bad = bench.committer.submit(bench.broken)
    more = bench.committer.submit(bench.quick)
    bench.go_on.set()
    assert first.result(60) == 1
    assert [future.result(60) for future in good] == list(range(2, 12))
    with pytest.raises(RegionSearchError, match="not like this"):
        bad.result(60)
    assert more.result(60) == 12  # the number of the failed write was taken back with it
    assert bench.commits == 2
    assert bench.applied == list(range(1, 13))
    assert bench.committer.seq == reads.last_seq(bench.database.reader()) == 12


def test_a_write_that_reads_the_index_commits_alone(bench: Bench) -> None:
    first = bench.committer.submit(bench.slow)
    assert bench.reached.wait(60)
    seen: list[list[int]] = []

    def looks(connection):
        seen.append(list(bench.applied))
        return bench.quick(connection)

    before = bench.committer.submit(bench.quick)
    alone = bench.committer.submit(looks, alone=True)
    after = bench.committer.submit(bench.quick)
    bench.go_on.set()
    assert [future.result(60) for future in (first, before, alone, after)] == [1, 2, 3, 4]
    assert seen == [[1, 2]]
    assert bench.commits == 4


def test_too_many_waiting_writes_are_refused_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_pending=100)
    first = bench.committer.submit(bench.slow)
    assert bench.reached.wait(60)
    second = bench.committer.submit(bench.quick, cost=90)
    with pytest.raises(RegionSearchError) as caught:
        bench.committer.submit(bench.quick, cost=20)
    assert caught.value.kind is Kind.OVERLOADED
    assert caught.value.retry_after_s is not None
    bench.go_on.set()
    assert (first.result(60), second.result(60)) == (1, 2)
    assert bench.committer.submit(bench.quick, cost=1000).result(60) == 3  # alone, even the largest is let in
    bench.close()


def test_an_index_that_cannot_apply_a_commit_ends_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(change: Change) -> None:
        raise MemoryError

    bench.committer._apply = fail
    with pytest.raises(MemoryError):
        bench.committer.submit(bench.quick).result(60)
    with pytest.raises(RegionSearchError):
        bench.committer.submit(bench.quick)
    bench.committer.close()
    assert len(bench.fatal) == 1


async def test_bounded_executor_refuses_calls_beyond_its_limit() -> None:
    calls, others = BoundedExecutor("reads", 1, 1), BoundedExecutor("writes", 1, 0)
    go_on = threading.Event()
    running = asyncio.create_task(calls.run(lambda: go_on.wait(60)))
    waiting = asyncio.create_task(calls.run(lambda: "second"))
    await asyncio.sleep(0)
    with pytest.raises(RegionSearchError) as caught:
        await calls.run(lambda: "third")
    assert caught.value.kind is Kind.OVERLOADED
    assert await others.run(lambda: "other") == "other"
    go_on.set()
    assert await running
    assert await waiting == "second"
    assert await calls.run(lambda: "fourth") == "fourth"
    calls.close()
    others.close()
