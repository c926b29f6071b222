"""What every route of the API needs first: a caller who may, and an end to its time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, Request

from gateway.access import Caller
from gateway.core import Gateway
from gateway.rights import Scope, having
from regionsearch.errors import RegionSearchError
from regionsearch.rpc.calls import calling_for, deadline


def needs(gateway: Gateway, scope: Scope | None, *, timed: bool = True) -> Any:
    """A dependency that checks key, scope and rate and bounds the time of all calls made for the request.

    Args:
        gateway: Whose settings hold.
        scope: What the route does; None needs any key.
        timed: False for routes that bound their parts themselves.
    """

    async def check(request: Request) -> AsyncIterator[None]:
        caller = _check(gateway, request, scope)
        with (
            having(caller.rights),
            calling_for(caller.name),
            deadline(gateway.settings.timeouts.query_s if timed else None),
        ):
            yield

    return Depends(check)


def is_known(gateway: Gateway, request: Request) -> bool:
    """Whether a caller may be told what goes on inside: it has a key that may read, or there are no keys."""
    if not gateway.settings.has_keys:
        return True
    if not {"authorization", "x-api-key"}.intersection(request.headers):
        return False
    try:
        _check(gateway, request, Scope.SEARCH)
    except RegionSearchError:
        return False
    return True


def _check(gateway: Gateway, request: Request, scope: Scope | None) -> Caller:
    headers = request.headers
    address = request.client.host if request.client else ""
    caller = gateway.access.check(scope, headers.get("authorization"), headers.get("x-api-key"), address)
    request.state.caller = caller.name  # for the log
    return caller
