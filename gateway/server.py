"""The gateway's process: an HTTP server and a gRPC server on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from gateway.core import Gateway, GatewayHealth
from gateway.grpc_api import RegionSearchServicer
from gateway.http.app import create_app
from gateway.http.listener import HttpServer
from gateway.settings import GatewaySettings
from gateway.sweep import Sweeper, sweep_again_and_again
from regionsearch.v1.region_search_pb2_grpc import add_RegionSearchServiceServicer_to_server
from services.runtime.server import Lifespan, Server, announce
from services.runtime.tls import check_certificate

_log = structlog.get_logger(__name__)


def lifespan(settings: GatewaySettings) -> Lifespan:
    """What the process does from its start to its end.

    HTTP is served from the start, so that ``/readyz`` can say what the gateway waits for.
    """

    @contextlib.asynccontextmanager
    async def live(server: Server) -> AsyncIterator[None]:
        tls = settings.backend_tls
        if tls.enabled and tls.certificate is not None and tls.key is not None:
            check_certificate(tls.certificate, tls.key, tls.ca, role="client")
        _warn_if_open(settings)
        gateway = Gateway(settings)
        health = GatewayHealth(gateway, server.health)
        app = create_app(gateway, health)
        try:
            async with _http_server(app, settings, server.closing):
                servicer = RegionSearchServicer(gateway, server.load)
                server.add(add_RegionSearchServiceServicer_to_server, servicer)
                await health.services_ready()
                async with _background(health.follow(), gateway.reindexer.follow(), *_sweeps(gateway)):
                    yield
        finally:
            await gateway.close()

    return live


def _warn_if_open(settings: GatewaySettings) -> None:
    """Says so where others may do as they like."""
    hosts = {settings.host, settings.http_host or settings.host}
    open_to = sorted(host for host in hosts if not _is_loopback(host))
    if open_to and not settings.has_keys:
        _log.warning(
            "open to everybody who reaches it: without api_keys anyone may read, add and delete everything",
            hosts=open_to,
        )


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _sweeps(gateway: Gateway) -> list[Coroutine[Any, Any, None]]:
    settings = gateway.settings.sweep
    if settings.every_s is None:
        return []
    sweeper = Sweeper(gateway.catalog, gateway.store, settings.older_than_s)
    return [sweep_again_and_again(sweeper, settings.every_s)]


@contextlib.asynccontextmanager
async def _background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs endless work in the background of the body."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _http_server(
    app: ASGIApp, settings: GatewaySettings, closing: asyncio.Event
) -> AsyncIterator[None]:
    """Serves HTTP; once `closing` is set, or at the end, requests that run get the grace period."""
    tls = settings.tls
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the application writes its own line, with the request's id
        lifespan="off",
        server_header=False,
        timeout_keep_alive=settings.connections.idle_s,
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
    server = HttpServer(config, settings.connections)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server ended before it served")
            await asyncio.sleep(0.01)
        announce(settings, "http", host, port, settings.http_port_file)
        async with _background(_close(server, closing)):
            yield
    finally:
        server.should_exit = True
        await serving


async def _close(server: uvicorn.Server, closing: asyncio.Event) -> None:
    """Stops HTTP while gRPC stops: in turn they could take twice the grace period."""
    await closing.wait()
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named asyncio turns Nagle's algorithm off, which holds the body of a small answer back
    # until the client has acknowledged its headers: 40 ms on a connection that is kept.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener
