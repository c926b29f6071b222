"""FAISS, untyped: the stubs in its wheels describe the C++ signatures, not the Python ones laid over them."""

from __future__ import annotations

from typing import Any

import faiss as _faiss
import numpy as np

from services.searcher.embedded.segments import Mask

faiss: Any = _faiss


def selector(mask: Mask) -> Any:
    """Lets only the masked rows into a search; it holds on to its bits."""
    bits = np.packbits(mask, bitorder="little")
    made = faiss.IDSelectorBitmap(bits)
    made.bits = bits
    return made
