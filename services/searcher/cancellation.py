"""Cancellation of calls whose caller has left, or whose deadline has passed."""

from __future__ import annotations

import time

from regionsearch.errors import Kind, RegionSearchError


class CancellationToken:
    """Cancellation token for one call: the event loop sets it, the threads that work for the call check it.

    Args:
        remaining_s: Seconds until the deadline; None without one.
    """

    def __init__(self, remaining_s: float | None = None) -> None:
        self._deadline = None if remaining_s is None else time.monotonic() + remaining_s
        self._cancelled = False

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def cancel(self) -> None:
        """Cancels the call."""
        self._cancelled = True

    def refusal(self) -> RegionSearchError | None:
        """CANCELLED or DEADLINE_EXCEEDED once the work should stop; None before."""
        if self._cancelled:
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


NEVER_CANCELLED = CancellationToken()
"""The token of calls that are never cancelled."""
