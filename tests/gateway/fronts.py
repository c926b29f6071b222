"""A stand-in before the real searcher, whose single methods a test replaces."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.runtime.server import Server
from tests.gateway.conftest import World, service
from tests.gateway.fakes import FakeSettings, lifespan


class SearcherFront(search_pb2_grpc.SearchServiceServicer):
    """Passes every call on to the searcher, a stub of which is `real`; subclasses answer some themselves."""

    def __init__(self, target: str) -> None:
        self.real = search_pb2_grpc.SearchServiceStub(grpc.aio.insecure_channel(target))
        for method in search_pb2.DESCRIPTOR.services_by_name["SearchService"].methods:
            if method.name not in type(self).__dict__:
                setattr(self, method.name, self._passing(getattr(self.real, method.name)))

    @staticmethod
    def _passing(method: Any) -> Any:
        async def passing(request: Any, context: Any) -> Any:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                trailing = tuple(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details(), trailing)

        return passing


def start_front(world: World, kind: type[SearcherFront]) -> tuple[Server, SearcherFront]:
    """Starts one before the world's searcher."""
    fronts: list[SearcherFront] = []

    @contextlib.asynccontextmanager
    async def live(server: Server) -> AsyncIterator[None]:
        fronts.append(kind(f"127.0.0.1:{world.searcher.port}"))
        async with lifespan(search_pb2_grpc.add_SearchServiceServicer_to_server, fronts[0])(server):
            yield

    server = world.run(world.start(FakeSettings(), service(search_pb2, "SearchService"), live))
    return server, fronts[0]
