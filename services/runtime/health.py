"""``grpc.health.v1.Health`` that reflects the process's real state, and lets a draining server stop.

The stock servicer starts as SERVING and keeps its Watch streams open, so that ``server.stop(grace)`` waits
for the whole grace period as soon as one client watches. Here a process starts as NOT_SERVING, has one state
for all of its services, and closes the streams after a last NOT_SERVING.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime import metrics

METHOD_PREFIX = "/grpc.health.v1.Health/"
_Status = health_pb2.HealthCheckResponse


class Health:
    """Whether this process serves, and why not. Use it on the event loop."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        """Args:
        services: Full names of the gRPC services whose health is that of the process.
        """
        self._services = frozenset(services) | {""}
        self._changed = asyncio.Event()
        self._closed = False
        self.serving = False
        self.reason = "starting"

    def set_serving(self) -> None:
        """Reports SERVING; without effect after :meth:`close`."""
        if not self._closed:
            self._set(True, "")

    def set_not_serving(self, reason: str) -> None:
        """Reports NOT_SERVING."""
        self._set(False, reason)

    def close(self) -> None:
        """Ends the Watch streams after a last NOT_SERVING."""
        self._closed = True
        self._set(False, self.reason or "stopping")

    def _set(self, serving: bool, reason: str) -> None:
        self.serving, self.reason = serving, reason
        metrics.SERVING.set(serving)
        self._changed.set()
        self._changed = asyncio.Event()

    def status(self, service: str) -> int:
        """The ``ServingStatus`` of a service, SERVICE_UNKNOWN for one that this process does not have."""
        if service not in self._services:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if self.serving else _Status.NOT_SERVING)

    async def watch(self, service: str) -> AsyncIterator[int]:
        """Yields the status now and after each change, until :meth:`close`."""
        last = None
        while True:
            changed, closed, status = self._changed, self._closed, self.status(service)
            if status != last:
                last = status
                yield status
            if closed:
                return
            if changed is self._changed:
                await changed.wait()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the servicer."""
        health_pb2_grpc.add_HealthServicer_to_server(_Servicer(self), server)


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        status = self._health.status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async for status in self._health.watch(request.service):
            yield _Status(status=status)
