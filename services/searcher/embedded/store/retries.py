"""Retries of background work: how long to wait between attempts, and how often to log the same failure."""

from __future__ import annotations

import time

_REPEAT_S = 600.0
_FIRST_S = 1.0
_LONGEST_S = 60.0


class LogThrottle:
    """Throttles repeated log messages to one in ten minutes."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def due(self, message: str) -> bool:
        """Whether the message should be logged now."""
        now = time.monotonic()
        if now - self._logged.get(message, -_REPEAT_S) < _REPEAT_S:
            return False
        self._logged[message] = now
        return True

    def reset(self) -> None:
        """After a success: the next failure counts as new."""
        self._logged.clear()


class Backoff:
    """Exponential backoff: a second, doubled by each failure up to a minute."""

    def __init__(self, first_s: float = _FIRST_S) -> None:
        self._first_s = first_s
        self.delay_s = first_s

    def failed(self) -> None:
        """Doubles the delay."""
        self.delay_s = min(2 * self.delay_s, max(_LONGEST_S, self._first_s))

    def succeeded(self) -> None:
        """Resets the delay."""
        self.delay_s = self._first_s
