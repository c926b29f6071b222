"""Long decoding at a lower priority of the operating system: what others wait for goes first."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

PIXELS = 16_000_000
"""Of an image whose decoding counts as long: a quarter of a second and more."""
NICENESS = 5  # a third of the share of a core that others have


def in_background(work: Callable[[], Result]) -> Result:
    """Does work in a thread of its own that yields the cores to others, and waits for it.

    A thread's priority can be lowered and not raised again, so each work has a new one.
    """
    if sys.platform != "linux":  # elsewhere the priority is that of the whole process
        return work()
    future: Future[Result] = Future()

    def run() -> None:
        with contextlib.suppress(OSError):
            os.nice(NICENESS)  # of this thread alone
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="decode", daemon=True).start()
    return future.result()
