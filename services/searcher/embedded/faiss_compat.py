"""FAISS, untyped: the stubs in its wheels describe the C++ signatures, not the Python ones on top of them."""

from __future__ import annotations

from typing import Any

import faiss as _faiss
import numpy as np
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
