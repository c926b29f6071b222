"""Keeps the memory of a model's intermediate results from one batch to the next."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as <malloc.h> names them: M_TRIM_THRESHOLD, …
_LARGEST_KEPT = 32 << 20  # the most that every glibc accepts; larger tensors still go back to the system
_KEPT = 256 << 20
_ARENAS = "MALLOC_ARENA_MAX"  # glibc's own variable


def reuse_freed_memory() -> None:
    """Makes glibc's allocator keep up to 256 MiB of freed memory, for all threads; elsewhere does nothing.

    By default a tensor of a few MiB is mapped anew each time, and the kernel clears its pages: for a mask
    decoder on a CPU that takes a third of the time. All threads share one arena, with one lock: the arenas
    of threads cannot grow beyond 64 MiB, and shrink at once. Whoever sets MALLOC_ARENA_MAX gets that many
    instead. Call it before a model is loaded.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        if _ARENAS not in os.environ:
            libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
