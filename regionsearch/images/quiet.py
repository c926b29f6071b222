"""libtiff writes a line on stderr for each thing that it dislikes, up to 65,535 of them for one file."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from PIL import _imaging  # noqa: F401  # loads the library


def silence_libtiff() -> None:
    """Takes libtiff's handlers of errors and warnings away, for this process; errors still reach the caller.

    Pillow has no way to do it. Where its libtiff is not a library of its own, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        loaded = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in loaded if "/libtiff" in line}
        for path in paths:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
