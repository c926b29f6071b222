"""What this process has written to one collection, so that its reads see it and wait no longer than for that.

pymilvus' own "Session" consistency forgets deletions: Milvus 2.3 stamps only what is inserted. Milvus stamps
every write. Its stamps hold milliseconds and, in the last 18 bits, a counter; ours are microseconds, because
JSON readers round larger numbers.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

import grpc

from services.searcher.milvus.access import EVENTUAL, STRONG, Access, Freshness

_LAG_S = 60.0  # after which every write is visible to every read: Milvus refuses reads long before
_MOST = 200_000


class Session:
    """The last write, and the ids of images and records of late ones; safe to use from several threads.

    Args:
        clock: Stamps writes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0
        self._failed = False  # the last write, so its stamp is not known
        self._lock = threading.Lock()
        self._written: OrderedDict[str, float] = OrderedDict()
        self._any_until = 0.0  # until then ids may be missing, as there were too many

    def written(self) -> int:
        """Notes that writes are done; returns a number of which a search sees them."""
        stamp = self._clock.after()
        with self._lock:
            self._last = max(self._last, stamp)
            self._failed = False
        return stamp

    def failed(self) -> None:
        """Notes that a write may have been done in part."""
        self._failed = True

    def freshness(self, min_seq: int = 0) -> Freshness:
        """Of reads that see what this process has written, and the given write."""
        if self._clock.skew_us or self._failed:
            return STRONG
        last = max(self._last, min_seq)
        return waits_for(last) if last else EVENTUAL

    def freshness_of(self, ids: Iterable[str]) -> Freshness:
        """Of reads of some ids; they need not wait for writes of others."""
        return self.freshness() if self._has_any(ids) else EVENTUAL

    def add(self, ids: Iterable[str]) -> None:
        """Notes ids, before they are written."""
        now = time.monotonic()
        with self._lock:
            for name in ids:
                self._written[name] = now
                self._written.move_to_end(name)
            while self._written:
                oldest, since = next(iter(self._written.items()))
                if now - since <= _LAG_S and len(self._written) <= _MOST:
                    break
                del self._written[oldest]
                self._any_until = max(self._any_until, since + _LAG_S)

    def _has_any(self, ids: Iterable[str]) -> bool:
        """Whether one of the ids may have been written so lately that a read could miss it."""
        now = time.monotonic()
        with self._lock:
            return now < self._any_until or any(
                now - self._written.get(name, -math.inf) < _LAG_S for name in ids
            )


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
