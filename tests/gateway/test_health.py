"""gRPC health follows the services behind the gateway, as /readyz does."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.gateway.conftest import EmbedderProcess, Running, World
from tests.gateway.fakes import Script
from tests.gateway.fronts import SearcherFront, start_front
from tests.waiting import wait_for

Status = health_pb2.HealthCheckResponse
SERVICE = "regionsearch.v1.RegionSearchService"


@contextlib.contextmanager
def watched(gateway: Running, service: str = SERVICE) -> Iterator[queue.Queue[int]]:
    """What Health.Watch says, as it comes."""
    seen: queue.Queue[int] = queue.Queue()
    call = health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest(service=service))

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            for answer in call:
                seen.put(answer.status)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        call.cancel()
        thread.join()


def statuses(gateway: Running) -> tuple[int, int]:
    """Of /readyz, with and without the services behind the gateway."""
    urls = ("/readyz", "/readyz?only=gateway")
    first, second = (gateway.http.get(url).status_code for url in urls)
    return first, second


def test_health_follows_a_service_that_dies_and_comes_back(
    world: World, script: Script, tmp_path: Path
) -> None:
    with EmbedderProcess(tmp_path) as embedder:
        gateway = world.gateway(embedder=f"127.0.0.1:{embedder.port}")
        with watched(gateway, "") as whole, watched(gateway, SERVICE) as named:

            def seen() -> set[int]:
                return {whole.get(timeout=120), named.get(timeout=120)}

            assert seen() == {Status.SERVING}
            assert statuses(gateway) == (200, 200)
            embedder.kill()
            assert seen() == {Status.NOT_SERVING}
            assert statuses(gateway) == (503, 200)
            with EmbedderProcess(tmp_path, embedder.port):
                assert seen() == {Status.SERVING}
                assert statuses(gateway) == (200, 200)
                world.call(gateway.server.stop)
                assert seen() == {Status.NOT_SERVING}


def test_while_calls_wait_for_a_restart_it_is_serving(world: World, script: Script, tmp_path: Path) -> None:
    """A gateway that would wait an hour for the embedder: calls have a chance, and so health says."""
    with EmbedderProcess(tmp_path) as embedder:
        gateway = world.gateway(embedder=f"127.0.0.1:{embedder.port}", timeouts={"restart_s": 3600})
        embedder.kill()
        wait_for(lambda: statuses(gateway) == (503, 200))
        check = health_pb2_grpc.HealthStub(gateway.channel).Check
        assert check(health_pb2.HealthCheckRequest(service=SERVICE)).status == Status.SERVING


class Stuck(SearcherFront):
    """Healthy, but never says anything about a collection."""

    stuck = False

    async def GetCollection(self, request: Any, context: Any) -> Any:
        if self.stuck:
            await asyncio.Event().wait()
        return await self.real.GetCollection(request)


def test_a_probe_does_not_wait_for_a_searcher_that_hangs(world: World, script: Script) -> None:
    server, front = start_front(world, Stuck)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}", timeouts={"probe_s": 2, "restart_s": 3600})
    front.stuck = True

    def detail() -> str:
        answer = gateway.http.get("/readyz")  # a call may take a minute
        assert answer.status_code == 503
        return str(answer.json()["services"]["searcher"]["detail"])

    wait_for(lambda: "took too long" in detail())
    front.stuck = False
    wait_for(lambda: statuses(gateway) == (200, 200))
