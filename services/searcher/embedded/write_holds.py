"""Writes that wait while a collection's name is given to another one."""

from __future__ import annotations

import threading
import time


class WriteHolds:
    """Collections whose writes wait for a moment, so that another one can take their name."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._changed = threading.Condition()

    def hold(self, name: str, seconds: float) -> None:
        """Writes to a collection wait from now on, for so long at most; does nothing for 0 seconds."""
        if seconds > 0:
            with self._changed:
                self._until[name] = time.monotonic() + seconds

    def release(self, name: str) -> None:
        """Writes go on."""
        with self._changed:
            self._until.pop(name, None)
            self._changed.notify_all()

    def wait(self, name: str) -> None:
        """Returns once writes to a collection may go on."""
        if name not in self._until:
            return
        with self._changed:
            while (left := self._until.get(name, 0.0) - time.monotonic()) > 0:
                self._changed.wait(left)
            self._until.pop(name, None)
