"""How often and how long the client tries again."""

from __future__ import annotations

import random

from regionsearch.errors import Kind, RegionSearchError

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0


class Backoff:
    """Of one call.

    Args:
        retries: tries after the first.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.reset()

    def reset(self) -> None:
        """All of it again, because the call got on."""
        self._left = self._retries
        self._delay_s = FIRST_DELAY_S

    def next_delay(self, error: RegionSearchError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RegionSearchError: The error itself, when another try is not worth it.
        """
        if self._left == 0 or error.kind not in (Kind.OVERLOADED, Kind.UNAVAILABLE):
            raise error
        self._left -= 1
        delay = max(error.retry_after_s or 0, self._delay_s)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay * random.uniform(1.0, 1.5)
