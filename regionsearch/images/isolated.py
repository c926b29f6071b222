"""Decodes HEIC, AVIF and large WebP images in a separate process.

The size in the header of such a file guarantees nothing: tiles and frames inside it may be of any size and
number. So the decoder gets as much memory and time as the declared size needs, and a file that takes more
only costs its process. Starting one takes some 50 ms; decoding takes some 300 ms.
Pillow's WebP decoder holds the GIL: 49 megapixels would stop all threads for a second.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionsearch.images.container import DamagedError, TooIntricateError

_CHILD = Path(__file__).with_name("isolated_child.py")
BYTES = 48 << 20
"""Memory of the process itself."""

_FORMATS = frozenset({"AVIF", "HEIF"})
_WEBP_PIXELS = 2_000_000

_SECONDS, _PIXELS_PER_S = 5, 4_000_000  # of a slow core; the system ends the process after them
_PATIENCE = 10  # times as long on the clock, where others use the cores
_BYTES_PER_PIXEL = 32
_EXIT_TOO_MUCH = 3


def is_needed(file_format: str, width: int, height: int) -> bool:
    """Whether files of this format and size are decoded here."""
    return file_format in _FORMATS or (file_format == "WEBP" and width * height > _WEBP_PIXELS)


def load(data: bytes, file_format: str, width: int, height: int, transparent: bool) -> Image.Image:
    """Decodes a file of one frame.

    Args:
        data: The file.
        file_format: AVIF, HEIF or WEBP.
        width: As the file announces it; another is an error.
        height: Likewise.
        transparent: Whether there is an alpha channel.

    Returns:
        An image of mode RGBA, or RGBX, whose fourth band means nothing.

    Raises:
        DamagedError: It cannot be decoded.
        TooIntricateError: It takes far more time or memory than its size needs.
    """
    mode = "RGBA" if transparent else "RGBX"
    area = width * height
    seconds = _SECONDS + area // _PIXELS_PER_S
    with contextlib.closing(_Memory(4 * area)) as memory:
        numbers = [memory.file, width, height, seconds, _BYTES_PER_PIXEL * area]
        command = [sys.executable, "-P", str(_CHILD), file_format, mode, *map(str, numbers)]
        try:
            child = subprocess.run(
                command,
                input=data,
                pass_fds=[memory.file],
                env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # a heap for each thread would count as used
                capture_output=True,
                timeout=_PATIENCE * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TooIntricateError(f"more than {_PATIENCE * seconds} s") from None
        if child.returncode < 0 or child.returncode == _EXIT_TOO_MUCH:
            raise TooIntricateError("more time or memory than an image of its size")
        if child.returncode:
            raise DamagedError(child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
        return Image.frombuffer(mode, (width, height), memory.view(), "raw", mode, 0, 1)


class _Memory:
    """Memory that two processes share."""

    def __init__(self, size: int) -> None:
        self.file = os.memfd_create("image")
        self._size = size
        os.ftruncate(self.file, size)

    def view(self) -> NDArray[np.uint8]:
        """The memory, which stays as long as this array does."""
        return np.frombuffer(mmap.mmap(self.file, self._size), np.uint8)

    def close(self) -> None:
        """Gives the descriptor back."""
        os.close(self.file)
