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

_SIGN_AND_REST = np.int32(
    -0x7000_2000
)  # the bits of a half, 13 places up: the sign is extended over three more
_EXPONENT = np.float32(2.0 ** (127 - 15))
_BLOCK = 1 << 17  # components, which stay in the cache between the passes


def selector(mask: NDArray[np.bool_]) -> Any:
    """Restricts a search to the rows of the mask, shape (rows,). The selector keeps its bits alive."""
    bits = np.packbits(mask, bitorder="little")
    made = faiss.IDSelectorBitmap(bits)
    made.bits = bits
    return made


def to_single(halves: NDArray[np.float16]) -> Vectors:
    """Converts finite half-precision vectors, shape (rows, dimension), to single precision without loss.

    NumPy and FAISS convert one component after the other, which takes four times as long as these few passes
    over all of them: sign, exponent and fraction are moved to their places, and the exponent is corrected by
    a multiplication, which makes subnormal numbers right, too.
    """
    bits = np.ascontiguousarray(halves).view(np.int16)
    found: Vectors = np.empty(bits.shape, np.float32)
    step = max(1, _BLOCK // max(1, bits.shape[1]))
    for start in range(0, len(bits), step):
        single = found[start : start + step]
        moved = single.view(np.int32)
        moved[...] = bits[start : start + step]
        moved <<= 13
        moved &= _SIGN_AND_REST
        single *= _EXPONENT
    return found


_ROWS = 8192  # of a part
_MANY_QUERIES = 4
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


def product_of(queries: Vectors, vectors: Vectors, rows: NDArray[np.intp]) -> Vectors:
    """Dot products with some of the vectors, shape (queries, rows).

    Few queries read the rows where they are, which takes a third of the time of copying them first; for more
    they are copied in blocks that stay in the cache.

    Args:
        queries: Shape (queries, dimension).
        vectors: Shape (all rows, dimension), contiguous.
        rows: The numbers of the rows.
    """
    queries, rows = np.ascontiguousarray(queries), np.ascontiguousarray(rows, np.int64)
    scores = np.empty((len(queries), len(rows)), np.float32)
    block = max(1, _BLOCK // vectors.shape[1])

    def part(start: int) -> None:
        stop = min(start + step, len(rows))
        if len(queries) < _MANY_QUERIES:
            _products_in_place(queries, vectors, rows[start:stop], scores[:, start:stop])
            return
        for first in range(start, stop, block):
            last = min(first + block, stop)
            scores[:, first:last] = _product(queries, vectors[rows[first:last]])

    step = max(1, len(rows))
    if _pool is None or queries.size * len(rows) < _MULTIPLICATIONS:
        part(0)
        return scores
    step = max(_ROWS, -(-len(rows) // (2 * _threads)))
    for _ in _pool.map(part, range(0, len(rows), step)):
        pass
    return scores


def _products_in_place(queries: Vectors, vectors: Vectors, rows: NDArray[np.int64], scores: Vectors) -> None:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # of this thread; FAISS would begin others for a single query, too
    try:
        for query, found in zip(queries, scores, strict=True):
            faiss.fvec_inner_products_by_idx(
                *map(faiss.swig_ptr, (found, query, vectors, rows)), vectors.shape[1], 1, len(rows)
            )
    finally:
        faiss.omp_set_num_threads(threads)


def _product(queries: Vectors, vectors: Vectors) -> Vectors:
    if len(queries) == 1:
        return np.asarray(vectors @ queries[0])[np.newaxis]
    return np.asarray(queries @ vectors.T)
