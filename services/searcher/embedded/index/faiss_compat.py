"""FAISS, untyped: the stubs in its wheels describe the C++ signatures, not the Python ones laid over them."""

from __future__ import annotations

from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.index.segments import Mask
from services.searcher.types import Vectors

faiss: Any = _faiss

_WORTH_THREADS = 1 << 20


def selector(mask: Mask) -> Any:
    """Lets only the masked rows into a search; it holds on to its bits."""
    bits = np.packbits(mask, bitorder="little")
    made = faiss.IDSelectorBitmap(bits)
    made.bits = bits
    return made


def widened(halves: NDArray[np.float16]) -> Vectors:
    """Half-precision vectors, shape (rows, dimension), in single precision: the same values.

    FAISS uses the processor's own conversion where it has one; NumPy takes more than twice as long, but does
    not have to wake threads.
    """
    if halves.size < _WORTH_THREADS:
        return halves.astype(np.float32)
    quantizer = faiss.ScalarQuantizer(halves.shape[1], faiss.ScalarQuantizer.QT_fp16)
    vectors: Vectors = quantizer.decode(np.ascontiguousarray(halves).view(np.uint8))
    return vectors
