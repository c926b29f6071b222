"""What happens around every HTTP request: its own context and task, its id, its size, its log line.

Plain ASGI: Starlette's `BaseHTTPMiddleware` would hide the client's leaving from the application.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import uuid
from collections.abc import Awaitable
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import Access
from gateway.http.problems import respond, respond_unexpected
from regionsearch.errors import Kind, RegionSearchError, too_large

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
_STOPPING = "stopping"
_LAST_WORDS_S = 1.0  # to end what was cancelled, and to say so
_NOTHING_SENT = 499  # what stays in the metrics when the client went away
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Nobody guesses what an answer is, frames it, or learns from a link where it was seen.
_BROWSERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

_log = structlog.get_logger(__name__)


class RequestContext:
    """Gives every request an id, a line in the log and its place in the metrics.

    What nothing further in has answered gets its problem document here. HEAD is GET whose body is not sent.
    The client is the caller, whatever trusted proxies are between.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["client"] and "x-forwarded-for" in headers:
            forwarded = ",".join(headers.getlist("x-forwarded-for"))
            scope["client"] = (self._access.address(scope["client"][0], forwarded), 0)
        given = headers.get(REQUEST_ID, "")
        request_id = given if 0 < len(given) <= 64 and given.isprintable() else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        # Nothing is served in ranges. Starlette would serve the page's files so, and refuse odd ones as text.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        asked = scope["method"]
        method = asked if asked in _METHODS else "other"  # callers may invent any
        if asked == "HEAD":
            scope["method"] = "GET"
        status = _NOTHING_SENT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = request_id
                for name, value in _BROWSERS.items():
                    answered.setdefault(name, value)
            elif asked == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        async def answer(error: Exception) -> None:
            if status != _NOTHING_SENT:
                raise error  # in the middle of an answer: the connection is cut
            request = Request(scope)
            if isinstance(error, RegionSearchError):
                response = respond(request, error)
            else:
                response = respond_unexpected(request, error)
            await response(scope, receive, send_with_id)

        begin = time.perf_counter()
        _IN_FLIGHT.inc()
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                try:
                    await self._app(scope, receive, send_with_id)
                except ClientDisconnect:
                    pass  # nobody is there to be answered
                except asyncio.CancelledError:
                    if status != _NOTHING_SENT or not is_stopping(scope):
                        raise
                    await answer(_stopping())
                except Exception as error:
                    await answer(error)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "none")
            _IN_FLIGHT.dec()
            _REQUESTS.labels(method, route, status).inc()
            _SECONDS.labels(method, route).observe(seconds)
            if route not in _QUIET:
                _log.info(
                    "request",
                    request_id=request_id,
                    method=asked,
                    path=scope["path"],
                    status=status,
                    seconds=round(seconds, 4),
                    address=scope["client"][0] if scope["client"] else "",
                    caller=scope["state"].get("caller", ""),
                )


def _stopping() -> RegionSearchError:
    return RegionSearchError(
        Kind.UNAVAILABLE,
        "the gateway is stopping, and did not finish this in time; try again",
        retry_after_s=1.0,
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
        try:
            receive_limited = limited(scope, receive, self._max_bytes, advice)
        except RegionSearchError as error:
            await respond(Request(scope), error)(scope, receive, send)
        else:
            await self._app(scope, receive_limited, send)


def limited(scope: Scope, receive: Receive, max_bytes: int, advice: str) -> Receive:
    """Reads the body of a request up to a limit.

    Args:
        scope: The request's scope; its headers may announce the length of the body.
        receive: Where the body comes from.
        max_bytes: The limit.
        advice: The remedy that the error TOO_LARGE names; it is raised by the first read beyond the limit.

    Raises:
        RegionSearchError: TOO_LARGE, when the request says that its body is. Nothing of it has been read
            then, so that a client that waits for ``100 Continue`` does not send it.
    """
    size = 0
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large("body", advice)

    async def receive_limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise too_large("body", advice)
        return message

    return receive_limited


class OwnTask:
    """Runs every request in its own task and context, and cancels the task if its client disconnects.

    The context is empty. The server's is not: while a body is read, asyncio takes the context of the reading
    task for that of the whole connection, so later requests on it would start with the deadline, the trace
    and the request id of an earlier one.

    Once the body has been read, the only further event is a disconnect, which cancels the task, and with it
    the calls to the services. A deletion, whose body is not read, is carried out. A stopping server cancels
    tasks too, and gives them a moment to respond.
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
        if scope["method"] in ("GET", "HEAD"):  # no route reads the body of one
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

        work: asyncio.Task[Any] = asyncio.create_task(
            _awaited(self._app(scope, receive_body, send_noted)), context=contextvars.Context()
        )
        watcher = asyncio.create_task(watch())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if not (work.cancelled() and gone.is_set()):
                scope.setdefault("state", {})[_STOPPING] = True
                work.cancel()
                await asyncio.wait([work], timeout=_LAST_WORDS_S)
        finally:
            watcher.cancel()


async def _awaited(work: Awaitable[None]) -> None:
    await work


def is_stopping(scope: Scope) -> bool:
    """Whether a request was cancelled because the server stops, not because its client has gone."""
    return bool(scope.get("state", {}).get(_STOPPING))
