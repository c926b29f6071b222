"""Whether somebody still waits for an answer."""

from __future__ import annotations

import time

from regionsearch.errors import Kind, RegionSearchError


class CancellationToken:
    """One call's caller. The event loop notes that it has left; the threads that work for it ask.

    Args:
        remaining_s: Seconds until nobody wants the answer any more; None for ever.
    """

    def __init__(self, remaining_s: float | None = None) -> None:
        self._deadline = None if remaining_s is None else time.monotonic() + remaining_s
        self._left = False

    def remaining_s(self) -> float | None:
        """Seconds until nobody wants the answer any more; None for ever."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def leave(self) -> None:
        """Nobody waits any more."""
        self._left = True

    def refusal(self) -> RegionSearchError | None:
        """Why no more work should be done: CANCELLED or DEADLINE_EXCEEDED. None while somebody waits."""
        if self._left:
            return RegionSearchError(Kind.CANCELLED, "the caller has left")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return RegionSearchError(
                Kind.DEADLINE_EXCEEDED, "the deadline passed before the search began: allow more time"
            )
        return None

    def check(self) -> None:
        """Raises the refusal, if there is one."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal


ANYBODY = CancellationToken()
"""A caller who never leaves."""
