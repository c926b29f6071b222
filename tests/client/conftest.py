from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from regionsearch import AsyncClient, Client
from tests.client.fakes import FakeGateway, serve_grpc, serve_http


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    """A fake gateway, over HTTP and gRPC."""
    gateway = FakeGateway()
    http, over_grpc = serve_http(gateway), serve_grpc(gateway)
    try:
        yield gateway
    finally:
        http.shutdown()
        http.server_close()
        over_grpc.stop(None).wait()


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, gateway: FakeGateway) -> str:
    """Its address, over each of the two."""
    return str(getattr(gateway, request.param))


@pytest.fixture(params=["sync", "async"])
def use(request: pytest.FixtureRequest, url: str) -> Callable[..., Any]:
    """Calls a method of a client by its name and gives its result."""
    asynchronous = request.param == "async"

    def call(method: str, *args: Any, retries: int = 3, api_key: str | None = None, **options: Any) -> Any:
        if not asynchronous:
            with Client(url, retries=retries, api_key=api_key) as client:
                result = getattr(client, method)(*args, **options)
                return list(result) if inspect.isgenerator(result) else result

        async def run() -> Any:
            async with AsyncClient(url, retries=retries, api_key=api_key) as client:
                result = getattr(client, method)(*args, **options)
                if inspect.isasyncgen(result):
                    return [one async for one in result]
                return await result

        return asyncio.run(run())

    return call
