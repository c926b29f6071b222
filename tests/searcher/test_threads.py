"""Products on the searcher's own threads: the same numbers, and none of BLAS's threads."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import threading
import numpy as np, threadpoolctl
from services.searcher.embedded import threads

rng = np.random.default_rng(0)
vectors = rng.standard_normal((20_001, 64)).astype(np.float32)
cases = [rng.standard_normal((count, 64)).astype(np.float32) for count in (1, 7, 64)]
before = [threads.product(queries, vectors) for queries in cases]
threads.take_over(3)
seen = set()
one = threads._product
threads._product = lambda q, v: seen.add(threading.current_thread().name) or one(q, v)
for queries, expected in zip(cases, before):
    np.testing.assert_allclose(threads.product(queries, vectors), expected, atol=1e-4)
assert any(name.startswith("product") for name in seen), seen
blas = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
assert blas and set(blas) == {1}, blas
"""


def test_large_products_are_cut_over_own_threads_and_blas_keeps_one() -> None:
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=120)
