"""Products on own threads give the same numbers; a long pass of one collection holds up no other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import EXACT
from services.searcher.embedded.index.vector_index import VectorQuery

CHILD = """
import threading
import numpy as np, threadpoolctl
from services.searcher.embedded import faiss_compat

rng = np.random.default_rng(0)
vectors = rng.standard_normal((20_001, 64)).astype(np.float32)
cases = [rng.standard_normal((count, 64)).astype(np.float32) for count in (1, 7, 64)]
before = [faiss_compat.product(queries, vectors) for queries in cases]
faiss_compat.take_over(3)
seen = set()
one = faiss_compat._product
faiss_compat._product = lambda q, v: seen.add(threading.current_thread().name) or one(q, v)
for queries, expected in zip(cases, before):
    np.testing.assert_allclose(faiss_compat.product(queries, vectors), expected, atol=1e-4)
assert any(name.startswith("product") for name in seen), seen
blas = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
assert blas and set(blas) == {1}, blas
"""


def test_large_products_use_the_compute_threads_and_blas_one_thread() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", CHILD], env=environment, check=True, timeout=120)


class SlowIndex:
    """Answers when it is told to, and notes what it was asked together."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.passes: list[int] = []

    def fetch(self, requests):
        self.passes.append(len(requests))
        self.begun.set()
        assert self.may_end.wait(60)
        return [[] for _ in requests]


def fetch(effort: float = 1.0) -> tuple[VectorQuery, CancellationToken]:
    return VectorQuery(np.ones((1, 4), np.float32), [], 10, effort=effort), NEVER_CANCELLED


def test_a_long_search_pass_delays_neither_other_collections_nor_quick_searches() -> None:
    search = SearchThreads(threads=2)
    slow, quick = SlowIndex(), SlowIndex()
    quick.may_end.set()
    long = search.submit(slow, [fetch(EXACT)])[0]
    assert slow.begun.wait(60)
    more = [search.submit(other, [fetch(EXACT)])[0] for other in (slow, quick, slow)]
    assert search.submit(quick, [fetch()])[0].result(60) == [], "another collection is answered meanwhile"
    slow.begun.clear()
    plain = search.submit(slow, [fetch()])[0]
    assert slow.begun.wait(60), "and a quick search of the same collection begins"
    together = [search.submit(slow, [fetch()])[0] for _ in range(3)]
    assert quick.passes == [1], "exhaustive searches leave a thread to the others"
    slow.may_end.set()
    for future in (long, plain, *more, *together):
        assert future.result(60) == []
    assert sorted(slow.passes) == [1, 1, 2, 3], "what waits for the same pass is answered together"
    search.close()


def test_searches_are_answered_by_their_caller_where_nobody_waits() -> None:
    class Index:
        def __init__(self) -> None:
            self.passes: list[tuple[threading.Thread, int]] = []

        def fetch(self, requests):
            self.passes.append((threading.current_thread(), len(requests)))
            return [[] for _ in requests]

    search, index, mine = SearchThreads(2, threads=1, own_threads=True), Index(), threading.current_thread()
    for future in search.submit(index, [fetch() for _ in range(3)]):
        assert future.result(60) == []
    assert index.passes.pop(0) == (mine, 2)
    assert [thread is mine for thread, _ in index.passes] == [False], "what did not fit into the pass"
    slow = SlowIndex()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(search.submit, slow, [fetch()])
        assert slow.begun.wait(60)
        waiting = [search.submit(index, [fetch()])[0] for _ in range(2)]
        slow.may_end.set()
        for future in (*long.result(60), *waiting):
            assert future.result(60) == []
    [_, (thread, count)] = index.passes
    assert (thread is mine, count) == (False, 2), "those who waited share a pass"
    search.close()


def test_searches_that_too_many_wait_before_are_refused_one_by_one() -> None:
    search, slow = SearchThreads(max_pending=2), SlowIndex()
    long = search.submit(slow, [fetch()])[0]
    assert slow.begun.wait(60)
    *waiting, refused = search.submit(slow, [fetch() for _ in range(3)])
    with pytest.raises(RegionSearchError) as caught:
        refused.result(60)
    assert caught.value.kind is Kind.OVERLOADED
    slow.may_end.set()
    for future in (long, *waiting):
        assert future.result(60) == []
    search.close()
