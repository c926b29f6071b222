"""The gateway's problem documents (RFC 9457) as typed errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.proxies import Proxy, through

_AWAY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


def error_of(problem: Mapping[str, Any]) -> RegionSearchError:
    """The error that a problem document stands for; a code of a newer server is INTERNAL.

    Raises:
        KeyError: It has no code, so that it is not a document of ours.
    """
    code = problem["code"]
    errors = problem.get("errors") or [{}]
    pointer = errors[0].get("pointer")
    error = RegionSearchError(
        Kind(code) if code in Kind.__members__ else Kind.INTERNAL,
        problem.get("detail", code),
        field=_field(pointer) if pointer else None,
        retry_after_s=problem.get("retry_after_s"),
        metadata=problem.get("metadata"),
    )
    error.request_id = problem.get("request_id")
    return error


def _field(pointer: str) -> str:
    """What gRPC calls the field of a JSON pointer: ``/query/points/2`` is ``query.points[2]``."""
    return re.sub(r"/(\d+)(?=/|$)", r"[\1]", pointer).strip("/").replace("/", ".")


def failure(response: httpx.Response, proxy: Proxy | None = None) -> RegionSearchError:
    """The error of an answer that is none, also when a proxy in between has made it.

    Args:
        response: The answer.
        proxy: Of the environment, when the call went through one.
    """
    try:
        return error_of(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Kind.UNAVAILABLE if response.status_code in _AWAY else Kind.INTERNAL
        message = f"{response.url} answered {response.status_code}{through(proxy)}, without a reason"
        return RegionSearchError(kind, message)


def unreachable(url: str, error: httpx.RequestError, proxy: Proxy | None = None) -> RegionSearchError:
    """The error of a request that got no answer, or half of one.

    Args:
        url: Who does not answer.
        error: What the HTTP library says.
        proxy: Of the environment, when the call went through one.
    """
    kind = Kind.DEADLINE_EXCEEDED if isinstance(error, httpx.TimeoutException) else Kind.UNAVAILABLE
    reason = str(error) or type(error).__name__
    remedy = "is it running? regionsearch up starts it"
    if proxy is not None:
        remedy = f"unset {proxy.variable} or name the host in no_proxy to go there directly"
    return RegionSearchError(kind, f"{url} does not answer{through(proxy)} ({reason}); {remedy}")
