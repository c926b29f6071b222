"""Who may call, and how often: API keys and rates."""

from __future__ import annotations

import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import structlog
from prometheus_client import Counter
from pydantic import SecretStr

from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.rpc.calls import caller_name

_WRONG_PER_S = 1.0  # wrong keys per address, and log lines about them
_WRONG_AT_ONCE = 20

_REFUSED = Counter(
    "regionsearch_auth_failures_total",
    "Callers that were not let in: without a key, with an unknown one, or with one for something else.",
    ("reason",),
)

_log = structlog.get_logger(__name__)


class ApiKeys:
    """The accepted API keys; without any, every caller is accepted."""

    def __init__(self, keys: Iterable[SecretStr | str]) -> None:
        plain = (key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys)
        self._keys = tuple(key.encode() for key in plain)
        self._wrong = RateLimit(_WRONG_PER_S, _WRONG_AT_ONCE, "unknown keys")

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str | None, api_key: str | None = None, address: str = "") -> str:
        """Authenticates a caller.

        Every key is compared in constant time, so that timing reveals nothing. Wrong keys are rate-limited
        per address; right keys from the same address still pass.

        Args:
            authorization: The header ``authorization``: ``Bearer <key>``, the scheme in any case.
            api_key: The header ``x-api-key``.
            address: The caller's.

        Returns:
            The caller's key; empty where no keys are configured, whatever was given.

        Raises:
            RegionSearchError: UNAUTHENTICATED for a missing or unknown key, OVERLOADED after too many unknown
                keys from one address.
        """
        if not self._keys:
            return ""
        given = api_key or _bearer(authorization or "")
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        if not given:
            _REFUSED.labels("missing").inc()
            raise RegionSearchError(
                Kind.UNAUTHENTICATED,
                "an API key is required: send it as 'authorization: Bearer <key>' or 'x-api-key: <key>'",
            )
        if not any(matches):
            _REFUSED.labels("unknown").inc()
            self._wrong.take(address)
            _log.warning("unknown API key", caller=caller_name(given, address), address=address)
            raise RegionSearchError(Kind.UNAUTHENTICATED, "the API key is unknown")
        return given


def refuse_scope(key: str, address: str, needed: str, own: Sequence[str]) -> RegionSearchError:
    """The error for a valid key that lacks a scope."""
    _REFUSED.labels("scope").inc()
    _log.warning(
        "API key without the scope", caller=caller_name(key, address), address=address, needed=needed
    )
    return RegionSearchError(
        Kind.PERMISSION_DENIED,
        f"this needs an API key with the scope {needed}; the one that was sent has {' and '.join(own)}",
    )


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else authorization.strip()


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
