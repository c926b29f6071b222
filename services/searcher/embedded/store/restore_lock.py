"""Many calls at once, or one that needs the house to itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from regionsearch.errors import Kind, RegionSearchError


class RestoreLock:
    """Lets calls through until one asks for exclusion; then new ones are refused, those inside waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed: str | None = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """One of many.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: try again", retry_after_s=1.0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self, why: str) -> Iterator[None]:
        """Alone, after those inside have left. `why` is what the others are told.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: try again", retry_after_s=1.0)
            self._closed = why
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = None
