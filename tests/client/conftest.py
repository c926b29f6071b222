from __future__ import annotations

from collections.abc import Iterator

import pytest

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
