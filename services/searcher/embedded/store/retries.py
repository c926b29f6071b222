"""How often something that fails again and again is tried, and said."""

from __future__ import annotations

import time

_REPEAT_S = 600.0
_FIRST_S = 1.0
_LONGEST_S = 60.0


class Seldom:
    """Lets a message through when it is new, and then every ten minutes."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def due(self, message: str) -> bool:
        """Whether the message should be said now."""
        now = time.monotonic()
        if now - self._said.get(message, -_REPEAT_S) < _REPEAT_S:
            return False
        self._said[message] = now
        return True

    def forget(self) -> None:
        """It is over: the next failure is new."""
        self._said.clear()


class Backoff:
    """Time between two attempts: a second, twice as long after each failure, a minute at most."""

    def __init__(self, first_s: float = _FIRST_S) -> None:
        self._first_s = first_s
        self.delay_s = first_s

    def failed(self) -> None:
        """The next attempt is later."""
        self.delay_s = min(2 * self.delay_s, max(_LONGEST_S, self._first_s))

    def succeeded(self) -> None:
        """The next attempt is soon."""
        self.delay_s = self._first_s
