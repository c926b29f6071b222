"""Who may do what, and how often; the same for HTTP and gRPC."""

from __future__ import annotations

import enum
import math
import time
from collections import OrderedDict

from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.rpc.callers import caller_name
from services.runtime.auth import ApiKeys

_MAX_CALLERS = 10_000


class Scope(enum.IntEnum):
    """What a key allows; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


_PREFIXES = {"read:": Scope.READ, "write:": Scope.WRITE}


def scope_of(key: str) -> Scope:
    """The scope that a key carries in its prefix; a key without one allows everything."""
    return next((scope for prefix, scope in _PREFIXES.items() if key.startswith(prefix)), Scope.ADMIN)


class Access:
    """Checks keys, scopes and rates."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._keys = ApiKeys(settings.api_keys)
        limits = settings.limits
        self._rate = (
            RateLimit(limits.requests_per_s, limits.requests_burst) if limits.requests_per_s else None
        )

    def check(self, needed: Scope, authorization: str | None, api_key: str | None, address: str) -> str:
        """Lets a request through or raises.

        Args:
            needed: What the request does.
            authorization: Header ``authorization``.
            api_key: Header ``x-api-key``.
            address: The caller's, which counts requests where there are no keys.

        Returns:
            The caller's name, by which it has its share of the services' time.

        Raises:
            RegionSearchError: UNAUTHENTICATED, PERMISSION_DENIED, or OVERLOADED over the rate.
        """
        key = self._keys.check(authorization, api_key)
        if self._keys and scope_of(key) < needed:
            raise RegionSearchError(
                Kind.PERMISSION_DENIED,
                f"this needs a key with the scope {needed.name.lower()}; "
                f"the key's is {scope_of(key).name.lower()}",
            )
        caller = caller_name(key, address)
        if self._rate is not None:
            self._rate.take(caller)
        return caller


class RateLimit:
    """A token bucket for each caller, in this process.

    Args:
        rate: Requests a second.
        burst: Requests at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def take(self, caller: str) -> None:
        """Counts a request.

        Raises:
            RegionSearchError: OVERLOADED, with the time until the next one is welcome.
        """
        now = time.monotonic()
        tokens, then = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(
                last=False
            )  # the one that has been silent longest: its bucket is full again
        if not allowed:
            wait = (1 - tokens) / self._rate
            raise overloaded(f"over {self._rate:g} requests a second; come back in {math.ceil(wait)} s", wait)
