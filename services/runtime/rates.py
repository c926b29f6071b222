"""Rate limits."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from regionsearch.errors import overloaded

_MAX_CALLERS = 10_000


class RateLimit:
    """A token bucket for each caller, in this process.

    Args:
        rate: Tokens per second.
        burst: Size of a bucket.
        what: Name of what is counted, for the error.
    """

    def __init__(self, rate: float, burst: int, what: str = "requests") -> None:
        self._rate = rate
        self._what = what
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def take(self, caller: str) -> None:
        """Takes a token of a caller.

        Raises:
            RegionSearchError: OVERLOADED, with the time until the next token.
        """
        now = time.monotonic()
        tokens, then = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)  # silent for the longest time: its bucket is full again
        if not allowed:
            wait = (1 - tokens) / self._rate
            raise overloaded(
                f"over {self._rate:g} {self._what} a second; come back in {math.ceil(wait)} s", wait
            )
