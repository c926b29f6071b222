"""What every route of the API needs first: a caller who may, and an end to its time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, Request

from gateway.access import Scope
from gateway.core import Gateway
from regionsearch.rpc import deadline
from regionsearch.rpc.callers import calling_for


def needs(gateway: Gateway, scope: Scope, *, timed: bool = True) -> Any:
    """A dependency that checks key, scope and rate and bounds the time of all calls made for the request.

    Args:
        gateway: Whose settings hold.
        scope: What the route does.
        timed: False for routes that bound their parts themselves.
    """

    async def check(request: Request) -> AsyncIterator[None]:
        headers = request.headers
        address = request.client.host if request.client else ""
        caller = gateway.access.check(scope, headers.get("authorization"), headers.get("x-api-key"), address)
        with calling_for(caller), deadline(gateway.settings.timeouts.query_s if timed else None):
            yield

    return Depends(check)
