"""Page tokens: where a list goes on, for which request, and in which state of the collection."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

from regionsearch.errors import RegionSearchError, invalid


def fingerprint(request: bytes) -> str:
    """Names a request, so that its token is not used with another one."""
    return hashlib.sha256(request).hexdigest()[:16]


def encode(*parts: Any) -> str:
    """An opaque token of JSON values; the first one is a fingerprint."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(token: str, request_fingerprint: str, *types: type) -> list[Any]:
    """The values behind the fingerprint.

    Args:
        token: What `encode` made.
        request_fingerprint: That of the present request.
        types: Expected types of the values.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a token that is damaged or belongs to another request.
    """
    try:
        parts = json.loads(base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)))
    except (ValueError, RecursionError) as error:
        raise _refused("is damaged") from error
    if not isinstance(parts, list) or len(parts) != len(types) + 1:
        raise _refused("is damaged")
    if not all(type(part) is kind and _sound(part) for part, kind in zip(parts[1:], types, strict=True)):
        raise _refused("is damaged")
    if parts[0] != request_fingerprint:
        raise _refused("belongs to another request; repeat that one, changing nothing but the token")
    return parts[1:]


def _sound(part: Any) -> bool:
    """Whether `encode` may have been given it: a count, a score, or a text that can be written as UTF-8."""
    if isinstance(part, int):
        return 0 <= part < 1 << 63
    if isinstance(part, float):
        return math.isfinite(part)
    return isinstance(part, str) and part.encode(errors="ignore").decode() == part


def _refused(why: str) -> RegionSearchError:
    return invalid("page_token", f"the page token {why}")
