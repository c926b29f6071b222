"""A small service for the life-cycle tests: EmbedService with answers that tests choose."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2

from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from services.runtime.server import Server, serving
from services.runtime.settings import ServiceSettings

EMBED = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]
REQUEST = embed_pb2.EmbedTextsRequest(texts=["a", "b"])
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class EchoSettings(ServiceSettings):
    process = "echo"
    drain_delay_s: float = 0.05
    grace_s: float = 60.0


class EchoServicer(embed_pb2_grpc.EmbedServiceServicer):
    """EmbedTexts runs `behave`; the default answers at once."""

    def __init__(self, behave: Callable | None = None) -> None:
        self.behave = behave
        self.cancelled = asyncio.Event()

    async def EmbedTexts(self, request, context):
        try:
            if self.behave is not None:
                await self.behave(request, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return embed_pb2.EmbedTextsResponse(truncated=[True] * len(request.texts))


@contextlib.asynccontextmanager
async def echo_server(
    behave: Callable | None = None, **settings: object
) -> AsyncIterator[tuple[Server, embed_pb2_grpc.EmbedServiceStub, EchoServicer]]:
    servicer = EchoServicer(behave)

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, servicer)
        yield

    async with (
        serving(EchoSettings(**settings), [EMBED], lifespan) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, embed_pb2_grpc.EmbedServiceStub(channel), servicer


@pytest.fixture
async def echo():
    async with echo_server() as parts:
        yield parts
