"""FAISS, untyped, and the threads that compute.

The stubs in FAISS's wheels describe the C++ signatures, not the Python ones on top of them. The threads of
BLAS spin while they wait: on a busy machine a search of a few thousand vectors then costs several times its
arithmetic. So a searcher gives each product one thread of BLAS, and cuts large ones over threads of its own,
which sleep.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss as _faiss
import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from services.searcher.types import Vectors

faiss: Any = _faiss

_MIN_FAISS_SIZE = 1 << 20  # below this, waking FAISS's threads costs more than NumPy's slower conversion


def selector(mask: NDArray[np.bool_]) -> Any:
    """Restricts a search to the rows of the mask, shape (rows,). The selector keeps its bits alive."""
    bits = np.packbits(mask, bitorder="little")
    made = faiss.IDSelectorBitmap(bits)
    made.bits = bits
    return made


def to_single(halves: NDArray[np.float16]) -> Vectors:
    """Converts half-precision vectors, shape (rows, dimension), to single precision without loss.

    FAISS uses the processor's conversion instructions where it has them; NumPy takes more than twice as long.
    """
    if halves.size < _MIN_FAISS_SIZE:
        return halves.astype(np.float32)
    quantizer = faiss.ScalarQuantizer(halves.shape[1], faiss.ScalarQuantizer.QT_fp16)
    vectors: Vectors = quantizer.decode(np.ascontiguousarray(halves).view(np.uint8))
    return vectors


_ROWS = 8192  # of a part
_MULTIPLICATIONS = 1 << 23  # below these a product is over before another thread has woken up

_pool: ThreadPoolExecutor | None = None
_threads = 1


def take_over(threads: int = 0) -> None:
    """Limits BLAS to one thread in the whole process, and computes products on a pool of this module.

    Args:
        threads: How many at once; 0 means one for each processor that the process may use.
    """
    global _pool, _threads
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    _threads = threads or len(os.sched_getaffinity(0))
    _pool = ThreadPoolExecutor(_threads, thread_name_prefix="product") if _threads > 1 else None


def product(queries: Vectors, vectors: Vectors) -> Vectors:
    """Dot products, shape (queries, vectors)."""
    if _pool is None or queries.size * len(vectors) < _MULTIPLICATIONS:
        return _product(queries, vectors)
    scores = np.empty((len(queries), len(vectors)), np.float32)
    step = max(_ROWS, -(-len(vectors) // (2 * _threads)))

    def part(start: int) -> None:
        scores[:, start : start + step] = _product(queries, vectors[start : start + step])

    for _ in _pool.map(part, range(0, len(vectors), step)):
        pass
    return scores


def _product(queries: Vectors, vectors: Vectors) -> Vectors:
    if len(queries) == 1:
        return np.asarray(vectors @ queries[0])[np.newaxis]
    return np.asarray(queries @ vectors.T)
