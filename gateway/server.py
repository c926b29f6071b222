"""The gateway's process: an HTTP server and a gRPC server on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from gateway.core import Gateway
from gateway.grpc_api import RegionSearchServicer
from gateway.http.app import create_app
from gateway.settings import GatewaySettings
from regionsearch.v1.region_search_pb2_grpc import add_RegionSearchServiceServicer_to_server
from services.runtime.server import Lifespan, Server

_WAIT_S = 0.25
_SAY_EVERY = 40  # waits between two lines in the log

_log = structlog.get_logger(__name__)


def lifespan(settings: GatewaySettings) -> Lifespan:
    """What the process does from its start to its end.

    HTTP is served from the start, so that ``/readyz`` can say what the gateway waits for. gRPC health says
    SERVING once the services have been ready and the default collection is there.
    """

    @contextlib.asynccontextmanager
    async def live(server: Server) -> AsyncIterator[None]:
        gateway = Gateway(settings)
        app: ASGIApp = create_app(gateway, server.health)
        if settings.otlp_endpoint:
            app = _traced(app)
        try:
            async with _http_server(app, settings):
                server.add(add_RegionSearchServiceServicer_to_server, RegionSearchServicer(gateway))
                await _services_ready(gateway)
                yield
        finally:
            await gateway.close()

    return live


def _traced(app: ASGIApp) -> ASGIApp:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    traced: ASGIApp = OpenTelemetryMiddleware(app, excluded_urls="healthz,readyz,metrics,static")
    return traced


async def _services_ready(gateway: Gateway) -> None:
    waits = 0
    while True:
        found = await gateway.readiness()
        missing = {name: state.detail for name, state in found.items() if not state.ready}
        if not missing:
            return
        if waits % _SAY_EVERY == 0:
            _log.info("waiting", **missing)
        waits += 1
        await asyncio.sleep(_WAIT_S)


@contextlib.asynccontextmanager
async def _http_server(app: ASGIApp, settings: GatewaySettings) -> AsyncIterator[None]:
    """Serves HTTP; at the end, requests that run get the grace period."""
    tls = settings.tls
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the application writes its own line, with the request's id
        lifespan="off",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        ssl_certfile=tls.certificate,
        ssl_keyfile=tls.key,
        ssl_ca_certs=str(tls.client_ca) if tls.client_ca else None,
        ssl_cert_reqs=2 if tls.client_ca else 0,
        proxy_headers=False,
    )
    host = settings.http_host or settings.host
    listener = _listen(host, settings.http_port)
    port = listener.getsockname()[1]
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server ended before it served")
            await asyncio.sleep(0.01)
        if settings.http_port_file is not None:
            fresh = settings.http_port_file.with_suffix(".new")
            fresh.write_text(f"{port}\n")
            fresh.replace(settings.http_port_file)
        print(json.dumps({"event": "http", "process": "gateway", "host": host, "port": port}), flush=True)
        yield
    finally:
        server.should_exit = True
        await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to the process's own life cycle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[Any]:
        """Captures none."""
        yield
