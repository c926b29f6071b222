"""A lock that many calls share and a restore holds alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from regionsearch.errors import Kind, RegionSearchError


class RestoreLock:
    """Shared by calls until one asks for it alone: then new calls are refused, and running ones awaited."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed: str | None = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the lock together with other calls.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: retry later", retry_after_s=1.0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self, why: str) -> Iterator[None]:
        """Holds the lock alone, once the running calls have ended. `why` is the message of refused calls.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: retry later", retry_after_s=1.0)
            self._closed = why
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = None
