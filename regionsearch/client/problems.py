"""The gateway's problem documents (RFC 9457) as typed errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

from regionsearch.errors import Kind, RegionSearchError

_AWAY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


def error_of(problem: Mapping[str, Any]) -> RegionSearchError:
    """The error that a problem document stands for; a code of a newer server is INTERNAL.

    Raises:
        KeyError: It has no code, so that it is no document of ours.
    """
    code = problem["code"]
    errors = problem.get("errors") or [{}]
    pointer = errors[0].get("pointer")
    return RegionSearchError(
        Kind(code) if code in Kind.__members__ else Kind.INTERNAL,
        problem.get("detail", code),
        field=_field(pointer) if pointer else None,
        retry_after_s=problem.get("retry_after_s"),
        metadata=problem.get("metadata"),
    )


def _field(pointer: str) -> str:
    """What gRPC calls the field of a JSON pointer: ``/query/points/2`` is ``query.points[2]``."""
    return re.sub(r"/(\d+)(?=/|$)", r"[\1]", pointer).strip("/").replace("/", ".")


def failure(response: httpx.Response) -> RegionSearchError:
    """The error of an answer that is none, also when a proxy in between has made it."""
    try:
        return error_of(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Kind.UNAVAILABLE if response.status_code in _AWAY else Kind.INTERNAL
        return RegionSearchError(kind, f"{response.url} answered {response.status_code}, and no reason")


def unreachable(url: str, error: httpx.RequestError) -> RegionSearchError:
    """The error of a request that got no answer, or half of one."""
    kind = Kind.DEADLINE_EXCEEDED if isinstance(error, httpx.TimeoutException) else Kind.UNAVAILABLE
    reason = str(error) or type(error).__name__
    return RegionSearchError(
        kind, f"{url} does not answer ({reason}); is it running? regionsearch up starts it"
    )
