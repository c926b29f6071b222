"""What one connection may cost: time for headers, a pace for bodies and readers, and how many there may be.

uvicorn reads and answers requests, but lets a connection take as long as it likes. `Connection` adds what a
parser must refuse; `Connections` looks at all of them several times a second and closes those that only hold
a place. Nothing is timed per request, so an ordinary one costs nothing more.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import h11
import structlog
import uvicorn
from prometheus_client import Counter, Gauge
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.http.problems import respond
from gateway.settings import ConnectionSettings
from regionsearch.errors import Kind, RegionSearchError, invalid, too_large

HEALTH = frozenset({"/healthz", "/readyz"})
LINGER_S = 5.0  # for the rest of a body that was refused: long enough for its sender to read the answer
MOST_HEADER_BYTES = 64 << 10
_WARN_EVERY_S = 60.0
_RESERVE = 1 / 8  # of the connections, beyond them: for health checks while all of them are in use

_OPEN = Gauge("regionsearch_http_connections", "HTTP connections that are open.")
_CLOSED = Counter(
    "regionsearch_http_connections_closed_total",
    "HTTP connections that the gateway has closed: slow headers, body or reader, a refused body, or no room.",
    ("reason",),
)
# The end of the headers, or a header that goes on in the next line, whichever comes first.
_END_OR_FOLD = re.compile(rb"\n(?:\r?\n|[ \t])")

_log = structlog.get_logger(__name__)


class _Parser(h11.Connection):
    """h11 without the leniency that lets a proxy and a server see different requests in the same bytes.

    Attributes:
        refusal: The last error, which uvicorn does not hand on.
        sent: Bytes given to the transport.
    """

    refusal: h11.RemoteProtocolError | None = None
    sent = 0

    def next_event(self) -> Any:
        """The next event of the peer.

        Raises:
            h11.RemoteProtocolError: What came is not HTTP, or may be read in two ways.
        """
        try:
            if self.their_state is h11.IDLE:
                found = _END_OR_FOLD.search(self.trailing_data[0])
                if found is not None and not found[0].endswith(b"\n"):
                    raise h11.RemoteProtocolError("a header field is folded over several lines")
            event = super().next_event()
            if isinstance(event, h11.Request):
                names = {name for name, _ in event.headers}
                if b"transfer-encoding" in names and (
                    b"content-length" in names or event.http_version < b"1.1"
                ):
                    raise h11.RemoteProtocolError("Transfer-Encoding with Content-Length or HTTP/1.0")
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # of its two overloads
        """Bytes for the transport; counts them."""
        output = super().send(event)
        if output:
            self.sent += len(output)
        return output


class Connection(H11Protocol):
    """One connection of uvicorn's that can be asked what it waits for."""

    def __init__(
        self, config: uvicorn.Config, state: uvicorn.server.ServerState, connections: Connections
    ) -> None:
        super().__init__(config, state, {})
        self.conn = _Parser(h11.SERVER, MOST_HEADER_BYTES)
        self._connections = connections
        self._received = 0
        self._waits: tuple[str | None, object] = (None, None)
        self._since = self._moved = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport."""
        super().connection_made(transport)  # type: ignore[arg-type]  # it is one
        if self._connections.add(self):
            self.app = self._connections.only_health(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport."""
        super().connection_lost(exc)
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        self._received += len(data)
        super().data_received(data)

    def _should_upgrade(self) -> bool:
        return False  # neither WebSocket nor HTTP/2: the header is ignored, as HTTP lets a server do

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP with a problem document and closes the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
            self.transport.abort()
            return
        assert isinstance(self.conn, _Parser)
        refusal = self.conn.refusal
        status = refusal.error_status_hint if refusal else 400
        message = f"not a valid HTTP request: {refusal or msg}"
        error = too_large("headers", message) if status == 431 else invalid("request", message)
        answer = respond(Request({"type": "http", "path": "/", "headers": []}), error, status)
        answer.headers["Connection"] = "close"
        for event in (
            h11.Response(
                status_code=status, headers=[*self.server_state.default_headers, *answer.raw_headers]
            ),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True  # of a body that broke off; nobody reads another answer
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def waiting_since(self) -> float:
        """When this connection began to wait for what it waits for, on the clock of `overdue`."""
        return self._since

    @property
    def waits_for(self) -> str | None:
        """What the peer owes, None while it is the gateway's turn.

        ``headers``, ``body``, ``reader`` (to take the answer), ``refused`` (the rest of a body that has had
        its answer), or ``request`` (the next one, between two).
        """
        if self.unsent:
            return "reader"
        answered = self.cycle is None or self.cycle.response_complete
        if self.conn.their_state is h11.IDLE:
            return "headers" if self.cycle is None or self.conn.trailing_data[0] else "request"
        if self.conn.their_state is h11.SEND_BODY:
            if answered:
                return "refused"
            return None if self.flow.read_paused else "body"
        return None

    def overdue(self, now: float, settings: ConnectionSettings) -> str | None:
        """What this connection has waited for too long, if so; to be asked again and again.

        Args:
            now: Seconds, on a clock of the caller's.
            settings: The limits.
        """
        kind = self.waits_for
        moved = self._received
        if kind == "reader":
            assert isinstance(self.conn, _Parser)
            moved = self.conn.sent - self.unsent
        if (kind, self.cycle) != self._waits:
            self._waits, self._since, self._moved = (kind, self.cycle), now, moved
            return None
        elapsed = now - self._since
        if kind == "headers" or kind == "refused":
            return kind if elapsed >= (settings.headers_s if kind == "headers" else LINGER_S) else None
        if kind in ("body", "reader") and elapsed >= settings.stall_s:
            if moved - self._moved < settings.min_bytes_per_s * elapsed:
                return kind
            self._since, self._moved = now, moved
        return None


class Connections:
    """All connections of the HTTP server.

    Args:
        settings: Limits of each, and of their number.
        most: The number, where the process has fewer file descriptors than the setting wants.
    """

    def __init__(self, settings: ConnectionSettings, most: int) -> None:
        self._settings = settings
        self._most = most
        self._reserve = max(2, int(most * _RESERVE))
        self._open: dict[Connection, None] = {}  # the oldest first
        self._warned_at = -_WARN_EVERY_S

    def add(self, connection: Connection) -> bool:
        """Takes note of a new connection; whether it is one too many, which only health checks may use."""
        self._open[connection] = None
        _OPEN.set(len(self._open))
        return len(self._open) > self._most

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that has ended."""
        self._open.pop(connection, None)
        _OPEN.set(len(self._open))

    def make_room(self, arriving: int = 0) -> bool:
        """Closes the connection that has been idle for longest, if all places are taken.

        So callers who hold idle connections only displace one another.

        Args:
            arriving: Connections that are not open yet, but will be.

        Returns:
            Whether another connection may come.
        """
        count = len(self._open) + arriving
        if count < self._most:
            return True
        self.warn("all HTTP connections are in use", open=count)
        if self.close_oldest():
            return True
        return count < self._most + self._reserve

    def close_oldest(self) -> bool:
        """Closes the oldest connection that has no request in work; whether there was one."""
        for connection in self._open:
            if connection.waits_for in ("headers", "request"):
                self._close(connection, "full")
                return True
        return False

    def warn(self, event: str, **facts: object) -> None:
        """Writes a warning, once a minute at most: whoever makes it necessary must not fill the log."""
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            _log.warning(event, limit=self._most, setting="connections.max_connections", **facts)

    def only_health(self, app: ASGIApp) -> ASGIApp:
        """What a connection beyond the limit gets: health, or 503; then it ends."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_last(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)

            if scope["path"] in HEALTH:
                await app(scope, receive, send_last)
                return
            message = "all connections are in use (connections.max_connections); try again in a moment"
            error = RegionSearchError(Kind.UNAVAILABLE, message, retry_after_s=1.0)
            await respond(Request(scope), error)(scope, receive, send_last)

        return answer

    async def watch(self) -> None:
        """Closes connections that are overdue, until it is cancelled."""
        settings = self._settings
        period = min(1.0, settings.headers_s / 4, settings.stall_s / 4)
        clock = 0.0
        last = time.monotonic()
        while True:
            await asyncio.sleep(period)
            now = time.monotonic()
            # Time in which this process itself did not get to read is not held against anybody.
            clock += min(now - last, 2 * period)
            last = now
            for connection in list(self._open):
                reason = connection.overdue(clock, settings)
                if reason is not None:
                    self._close(connection, reason)
            self._bound_unsent()

    def _bound_unsent(self) -> None:
        """Closes those who have been reading for longest, where answers that wait take too much memory."""
        unsent = sum(connection.unsent for connection in self._open)
        for connection in sorted(self._open, key=lambda one: one.waiting_since):
            if unsent <= self._settings.max_unsent_bytes:
                return
            if connection.unsent:
                unsent -= connection.unsent
                self._close(connection, "reader")

    def _close(self, connection: Connection, reason: str) -> None:
        _CLOSED.labels(reason).inc()
        self.discard(connection)  # its place is free at once, though its end is told a moment later
        connection.transport.abort()
