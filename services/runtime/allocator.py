"""Memory of large images goes back to the system when they are done with."""

from __future__ import annotations

import contextlib
import ctypes

MAPPED_BYTES = 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES = 64 << 20


def map_large_blocks() -> None:
    """Gives blocks of `MAPPED_BYTES` and more a mapping of their own, which ends when they are freed.

    glibc takes them from the heaps of threads once it has seen some freed; those stay as large as the images
    that happened to be decoded at the same time (six of 49 megapixels: 800 MB, for good). Other C libraries
    are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)  # which the other would have set to 128 kB
