"""What happens around every HTTP request: its id, its size, its log line, and the end of its work when the
client leaves.

Plain ASGI: Starlette's `BaseHTTPMiddleware` would hide the client's leaving from the application.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import respond_unexpected
from regionsearch.errors import too_large

REQUEST_ID = "x-request-id"

_REQUESTS = Counter(
    "regionsearch_http_requests_total", "HTTP requests that have ended.", ("method", "route", "status")
)
_SECONDS = Histogram(
    "regionsearch_http_request_seconds",
    "Time from the first byte of a request to the last one of its answer.",
    ("method", "route"),
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
_IN_FLIGHT = Gauge("regionsearch_http_in_flight", "HTTP requests that have begun and not ended.")
_NOTHING_SENT = 499  # what stays in the metrics when the client went away
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

_log = structlog.get_logger(__name__)


class RequestContext:
    """Gives every request an id, a line in the log and its place in the metrics."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if 0 < len(given) <= 64 and given.isprintable() else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        status = _NOTHING_SENT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        begin = time.perf_counter()
        _IN_FLIGHT.inc()
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                try:
                    await self._app(scope, receive, send_with_id)
                except Exception as error:
                    answer = respond_unexpected(Request(scope), error)
                    if status != _NOTHING_SENT:
                        raise  # in the middle of an answer: the connection is cut
                    await answer(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "none")
            _IN_FLIGHT.dec()
            method = scope["method"] if scope["method"] in _METHODS else "other"  # callers may invent any
            _REQUESTS.labels(method, route, status).inc()
            _SECONDS.labels(method, route).observe(seconds)
            if route not in _QUIET:
                _log.info(
                    "request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(seconds, 4),
                )


class BodyLimit:
    """Refuses bodies over a limit, as soon as they say so or turn out to be."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        advice = f"the body is over the limit of {self._max_bytes} bytes (max_request_bytes); send less"
        await self._app(scope, limited(scope, receive, self._max_bytes, advice), send)


def limited(scope: Scope, receive: Receive, max_bytes: int, advice: str) -> Receive:
    """Reads the body of a request up to a limit.

    Args:
        scope: Of the request; it may say how long the body is.
        receive: Where the body comes from.
        max_bytes: The limit.
        advice: Of the error TOO_LARGE, which is raised by the first read beyond it.
    """
    size = 0
    declared = Headers(scope=scope).get("content-length", "0")

    async def receive_limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes or (declared.isdigit() and int(declared) > max_bytes):
            raise too_large("body", advice)
        return message

    return receive_limited


class CancelOnDisconnect:
    """Ends the work for a request once its client has gone.

    The work runs in a task of its own. When the body has been read, the next thing that the server can say is
    that the client is gone; that cancels the task, and with it the calls to the services. A deletion, whose
    body nobody reads, is carried out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone = asyncio.Event()
        body_read = asyncio.Event()
        answered = False
        if scope["method"] == "GET":  # no route reads the body of one
            body_read.set()

        async def receive_body() -> Message:
            if body_read.is_set():  # streaming answers listen here for the end
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
                body_read.set()
            elif not message.get("more_body", False):
                body_read.set()
            return message

        async def send_noted(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def watch() -> None:
            await body_read.wait()
            while not gone.is_set():
                if (await receive())["type"] == "http.disconnect":
                    gone.set()
            if not answered:
                work.cancel()

        work: asyncio.Task[Any] = asyncio.ensure_future(self._app(scope, receive_body, send_noted))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if not (work.cancelled() and gone.is_set()):  # the server is stopping, not the client leaving
                work.cancel()
                raise
        finally:
            watcher.cancel()
