"""The clock that all searchers of one Milvus share: Milvus' own.

Milvus stamps every write. Its stamps hold milliseconds and, in the last 18 bits, a counter; ours are
microseconds, because JSON readers round larger numbers.
"""

from __future__ import annotations

import time

import grpc

from services.searcher.milvus.access import STRONG, Access, Freshness

_COUNTER_BITS = 18
_LOCAL_CLOCKS_DIFFER_US = 60_000_000  # of two searchers, at most


class Clock:
    """Stamps of writes and states.

    Args:
        access: The connection.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self.skew_us = 0
        """How far another searcher's stamps may be ahead; 0 where Milvus gives them."""
        try:
            stamped = self._shared() > 0
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            stamped = False
        if not stamped:  # milvus-lite has no clock
            self.skew_us = _LOCAL_CLOCKS_DIFFER_US

    def before(self, access: Access | None = None) -> int:
        """A stamp that is not above those of all later writes; within the time of the access's caller."""
        stamp = self._stamp(access)
        return (stamp >> _COUNTER_BITS) * 1000 + min(stamp & (1 << _COUNTER_BITS) - 1, 999)

    def after(self, access: Access | None = None) -> int:
        """A stamp above those of all earlier writes; a read that waits for it sees them all."""
        return ((self._stamp(access) >> _COUNTER_BITS) + 1) * 1000

    def now(self) -> Freshness:
        """How a read waits for everything that any searcher has written before."""
        return STRONG if self.skew_us else waits_for(self.after())

    def _stamp(self, access: Access | None) -> int:
        if self.skew_us:
            return time.time_ns() // 1_000_000 << _COUNTER_BITS
        return int((access or self._access).call(self._shared))

    def _shared(self, timeout: float | None = None) -> int:
        return int(self._access.client._get_connection().alloc_timestamp(timeout=timeout, context=None))


def waits_for(seq: int) -> Freshness:
    """How a read waits for a stamp."""
    return {"consistency_level": "Customized", "guarantee_timestamp": seq // 1000 << _COUNTER_BITS}
