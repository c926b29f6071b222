"""Classification of the errors that torch raises."""

from __future__ import annotations

import torch

from services.runtime.batcher import Failure

# Messages of allocators other than torch's own: the host's, CUDA's for pinned memory, those of its libraries.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def classify(error: Exception) -> Failure:
    """What an exception of a batch means for the batch and for the device.

    Out of memory also empties torch's cache: fragments of the wrong size may be enough for half a batch.
    """
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        part in message for part in _OUT_OF_MEMORY
    ):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "CUDA error" in message:
        return Failure.FATAL  # sticky: every later call in this CUDA context fails too
    return Failure.POISON
