"""Life cycle of a process that serves gRPC: bind, load, serve, drain, exit.

A service is a *lifespan*: an asynchronous context manager that loads what it needs, adds its servicers, and
cleans up. The process answers health checks from the first moment on, with NOT_SERVING until the lifespan is
up:

    @contextlib.asynccontextmanager
    async def embedder(server: Server) -> AsyncIterator[None]:
        engine = await asyncio.to_thread(Engine, settings)
        server.add(add_EmbedServiceServicer_to_server, EmbedServicer(engine))
        yield  # serving
        await engine.close()

    run(settings, [DESCRIPTOR.services_by_name["EmbedService"]], embedder)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images.tiff import silence_libtiff
from services.runtime.auth import ApiKeys
from services.runtime.health import Health
from services.runtime.interceptor import CallInterceptor
from services.runtime.logs import configure_logging, configure_tracing
from services.runtime.memory import map_large_blocks
from services.runtime.metrics import serve_metrics
from services.runtime.requests import Load
from services.runtime.settings import ServiceSettings
from services.runtime.tls import check_certificate

FAILURE_GRACE_S = 1.0  # calls in flight have failed already when a process fails
# A device thread that wakes up must not wait 5 ms, the default, for a busy event loop to release the GIL.
SWITCH_S = 0.001
WATCHDOG_S = 10.0  # after the grace period; then threads that hang are left behind

_log = structlog.get_logger(__name__)

_S = TypeVar("_S")
Lifespan: TypeAlias = "Callable[[Server], contextlib.AbstractAsyncContextManager[None]]"


class Server:
    """A gRPC server with health checks and graceful shutdown.

    Attributes:
        settings: The process's settings.
        health: Whether it serves; also for HTTP readiness.
        keys: The API keys; gRPC calls have been checked.
        load: Limits concurrent calls and the bytes of their requests; the bytes of a stream's items are
            counted by its servicer.
        port: The bound port; known before the lifespan starts.
        closing: Set when new calls are refused and those in flight have their grace period. A lifespan
            that serves on a port of its own closes it then.
    """

    def __init__(self, settings: ServiceSettings, services: Sequence[ServiceDescriptor]) -> None:
        self.settings = settings
        self.keys = ApiKeys(settings.api_keys)
        self.load = Load(settings.max_concurrent_calls, settings.max_concurrent_bytes)
        self.health = Health(service.full_name for service in services)
        self.port = 0
        self._names = [service.full_name for service in services]
        self._methods = _Methods(services, self.health)
        self._loop = asyncio.get_running_loop()
        self.closing = asyncio.Event()
        self._stopping = asyncio.Event()
        self._up = asyncio.Event()
        self._failure: str | None = None

    def add(self, register: Callable[[_S, grpc.aio.Server], None], servicer: _S) -> None:
        """Adds a servicer, at any time: earlier calls are answered UNAVAILABLE.

        Args:
            register: The generated ``add_…Servicer_to_server``.
            servicer: Its implementation.
        """
        register(servicer, self._methods)  # type: ignore[arg-type]  # takes the two methods that are called

    def stop(self) -> None:
        """Starts a graceful shutdown; on the event loop."""
        self.health.set_not_serving("stopping")
        self._stopping.set()

    def fail(self, reason: str) -> None:
        """Ends the process with code 1: a stage died, or the device no longer answers.

        From any thread. Health reports NOT_SERVING at once, so that no client waits for this process.
        """
        self._loop.call_soon_threadsafe(self._fail, reason)

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            _log.critical("giving up", reason=reason)
            self._failure = reason
            self.health.set_not_serving(reason)
            self._stopping.set()

    async def serve(self, lifespan: Lifespan, announce: Callable[[], None] = lambda: None) -> int:
        """Serves until :meth:`stop` or :meth:`fail`.

        Args:
            lifespan: The service.
            announce: Called once the process serves.

        Returns:
            The exit code of the process.
        """
        server = self._bind()
        await server.start()
        _log.info("listening", port=self.port)
        life = asyncio.create_task(self._live(server, lifespan, announce))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not self._up.is_set():
            life.cancel()  # still loading
        try:
            await life
        except asyncio.CancelledError:
            _log.info("stopped before serving")
        except RegionSearchError as error:
            self._failure = error.message
            _log.error("cannot serve", error=error.message)
        except Exception:
            self._failure = "unexpected error"
            _log.exception("cannot serve")
        finally:
            self.health.close()
            await server.stop(None)
        _log.info("stopped", failure=self._failure)
        return 0 if self._failure is None else 1

    async def _live(self, server: grpc.aio.Server, lifespan: Lifespan, announce: Callable[[], None]) -> None:
        async with lifespan(self):
            if not self._stopping.is_set():
                self._up.set()
                self.health.set_serving()
                announce()
            await self._stopping.wait()
            self.health.close()
            if self._failure is None:
                await asyncio.sleep(self.settings.drain_delay_s)
            self.closing.set()
            await server.stop(self.settings.grace_s if self._failure is None else FAILURE_GRACE_S)

    async def up(self) -> None:
        """Waits until the process serves."""
        await self._up.wait()

    def _bind(self) -> grpc.aio.Server:
        settings = self.settings
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second process on the same port is a mistake, not a replica
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_allowed_incoming_connections", settings.max_grpc_connections),
        ]
        if settings.max_connection_age_s is not None:  # gRPC's default grace: until the last call has ended
            options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_s * 1000)))
        interceptor = CallInterceptor(self.keys, self.load, settings.named_callers)
        server = grpc.aio.server(interceptors=[interceptor], options=options)
        server.add_generic_rpc_handlers((self._methods,))
        self.health.add_to(server)
        reflection.enable_server_reflection(
            [*self._names, reflection.SERVICE_NAME, "grpc.health.v1.Health"], server
        )
        host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host  # IPv6
        address = f"{host}:{settings.port}"
        tls = settings.tls
        if tls.certificate is not None and tls.key is not None:
            check_certificate(tls.certificate, tls.key, tls.client_ca)
            credentials = grpc.ssl_server_credentials(
                [(tls.key.read_bytes(), tls.certificate.read_bytes())],
                None if tls.client_ca is None else tls.client_ca.read_bytes(),
                require_client_auth=tls.client_ca is not None,
            )
            self.port = server.add_secure_port(address, credentials)
        else:
            self.port = server.add_insecure_port(address)
        return server

    def announce(self) -> None:
        """Reports the port to supervisors and tests; see :func:`announce`."""
        announce(self.settings, "serving", self.settings.host, self.port, self.settings.port_file)


def announce(settings: ServiceSettings, event: str, host: str, port: int, port_file: Path | None) -> None:
    """Reports a port to supervisors and tests: one JSON line on stdout, and the port file.

    Best effort: a full disk must not keep a process from serving.
    """
    if port_file is not None:
        fresh = port_file.with_suffix(".new")
        try:
            fresh.write_text(f"{port}\n")
            fresh.replace(port_file)
        except OSError as error:
            _log.warning("the port file cannot be written", file=str(port_file), error=str(error))
    with contextlib.suppress(OSError):
        facts: dict[str, object] = {
            "event": event,
            "level": "info",
            "timestamp": datetime.now(UTC).isoformat(),
        }
        facts |= {"process": settings.process, "host": host, "port": port}
        print(json.dumps(facts), flush=True)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Method table that can grow while the server runs; gRPC's own must be complete before it starts."""

    def __init__(self, services: Sequence[ServiceDescriptor], health: Health) -> None:
        self._expected = {f"/{service.full_name}/{m.name}" for service in services for m in service.methods}
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._health = health
        self._not_yet = grpc.stream_stream_rpc_method_handler(self._refuse)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Called by generated code; the same handlers come by name below."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Called by generated code."""
        self._handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method; one that answers UNAVAILABLE before there are any."""
        handler = self._handlers.get(details.method)
        if handler is None and not self._handlers and details.method in self._expected:
            return self._not_yet
        return handler

    async def _refuse(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        if not self._handlers:
            raise RegionSearchError(Kind.UNAVAILABLE, f"not serving yet: {self._health.reason}; retry")
        yield b""  # unreached: makes this a generator


@contextlib.asynccontextmanager
async def serving(
    settings: ServiceSettings, services: Sequence[ServiceDescriptor], lifespan: Lifespan
) -> AsyncIterator[Server]:
    """Serves within the calling process, for tests and benchmarks; yields once the server serves.

    Raises:
        RuntimeError: The lifespan failed; the log says why.
    """
    server = Server(settings, services)
    life = asyncio.create_task(server.serve(lifespan))
    up = asyncio.create_task(server.up())
    await asyncio.wait({life, up}, return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    if life.done():
        raise RuntimeError(f"the server ended with code {life.result()} before it served")
    try:
        yield server
    finally:
        server.stop()
        await life


def run(settings: ServiceSettings, services: Sequence[ServiceDescriptor], lifespan: Lifespan) -> NoReturn:
    """The main function of a process.

    SIGTERM and SIGINT start a graceful shutdown: health reports NOT_SERVING, calls in flight get ``grace_s``,
    the lifespan cleans up, the exit code is 0. A second signal ends at once. After
    :meth:`Server.fail` the exit code is 1.
    """
    configure_logging(settings.process, settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_S)
    map_large_blocks()
    silence_libtiff()
    tracing = configure_tracing(settings.process, settings.otlp_endpoint)

    async def main() -> int:
        server = Server(settings, services)
        if settings.metrics_port:
            serve_metrics(settings.host, settings.metrics_port)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, _interrupt, server)
        watchdog = asyncio.create_task(_arm_watchdog(server))

        def announce() -> None:
            # What is loaded by now stays. Searching it for garbage would stop all threads for .1 s and more.
            gc.collect()
            gc.freeze()
            server.announce()

        try:
            return await server.serve(lifespan, announce)
        finally:
            watchdog.cancel()

    try:
        # The runner is not closed: that would wait for abandoned threads, such as one that loads a model when
        # the process is told to stop.
        code = asyncio.Runner().run(main())
    except (OSError, RuntimeError, RegionSearchError) as error:  # a port in use, a wrong certificate
        _log.error("cannot start", error=str(error))
        code = 1
    if tracing is not None:
        tracing.shutdown()
    # Everything is closed and written. Python would go on to collect every object of torch, one by one: that
    # takes seconds, on a busy machine more than the time that a container gets to stop.
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full log does not change the exit code
            stream.flush()
    os._exit(code)


def _interrupt(server: Server) -> None:
    if server.health.reason == "stopping":
        os._exit(130)
    server.stop()


async def _arm_watchdog(server: Server) -> None:
    """A thread that hangs in a broken device cannot be joined; it must not keep the process alive either."""
    await server._stopping.wait()
    settings = server.settings
    limit = FAILURE_GRACE_S if server._failure else settings.drain_delay_s + settings.grace_s
    watchdog = threading.Timer(limit + WATCHDOG_S, os._exit, (1,))
    watchdog.daemon = True
    watchdog.start()
