"""The HTTP server: uvicorn, with a way in that stays open when connections or file descriptors run out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from gateway.http.connections import Connection, Connections
from gateway.settings import ConnectionSettings

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RETRY_S = 0.1
_BACKLOG = 2048
_AT_ONCE = 16
_TLS_SHUTDOWN_S = 5.0
_LAST_WORDS_S = 2.0
_MOST_FILES = 65_536


class HttpServer(uvicorn.Server):
    """Serves an application on a socket.

    asyncio's own servers try 2,048 times in a row to accept a connection for which there is no file
    descriptor, write a traceback for each, and begin again a second later. This one makes room and waits.

    Args:
        config: uvicorn's configuration.
        settings: Limits of the connections.
    """

    def __init__(self, config: uvicorn.Config, settings: ConnectionSettings) -> None:
        super().__init__(config)
        # Half of the descriptors: the rest is for files, the services and gRPC.
        self._connections = Connections(settings, min(settings.max_connections, file_limit() // 2))
        self._handshake_s = settings.headers_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens on the sockets."""
        self.servers: list[Any] = [self._listen(listener) for listener in sockets or []]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the requests in work; those that outlast the grace have a moment to say so."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS_S)

    def _listen(self, listener: socket.socket) -> _Listener:
        def connect() -> Connection:
            return Connection(self.config, self.server_state, self._connections)

        return _Listener(listener, self.config.ssl, connect, self._connections, self._handshake_s)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[Any]:
        """Captures none: signals belong to the process's own life cycle."""
        yield


class _Listener:
    """Accepts connections. Has the two methods of an `asyncio.Server` that uvicorn calls."""

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        connect: Any,
        connections: Connections,
        handshake_s: float,
    ) -> None:
        self._listener = listener
        self._tls = tls
        self._connect = connect
        self._connections = connections
        self._handshake_s = handshake_s
        self._arriving: dict[asyncio.Task[None], socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._watching = asyncio.create_task(connections.watch())
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Takes no more connections; those that are open stay, and are watched."""
        self._loop.remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()
        for task in self._arriving:
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits for the end of `close`, once the connections have ended."""
        self._watching.cancel()
        await asyncio.gather(self._watching, *self._arriving, return_exceptions=True)

    def _accept(self) -> None:
        """Takes some of the connections that wait; the others have their turn after everybody else's."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._connections.close_oldest()
                    self._connections.warn("cannot accept an HTTP connection", error=str(error))
                    self._loop.remove_reader(self._listener)
                    self._later = self._loop.call_later(
                        _RETRY_S, self._loop.add_reader, self._listener, self._accept
                    )
                return  # or none waits any more
            if self._connections.make_room(len(self._arriving)) or self._drop_arriving():
                connection.setblocking(False)
                task = self._loop.create_task(self._begin(connection))
                self._arriving[task] = connection
                task.add_done_callback(self._arrived)
            else:
                connection.close()

    async def _begin(self, connection: socket.socket) -> None:
        """Connects the protocol, after the handshake where there is TLS."""
        timeouts: dict[str, float] = {}
        if self._tls is not None:
            timeouts = {
                "ssl_handshake_timeout": self._handshake_s,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN_S,
            }
        with contextlib.suppress(OSError):  # no TLS is spoken, too slow, gone
            await self._loop.connect_accepted_socket(self._connect, connection, ssl=self._tls, **timeouts)
            return
        connection.close()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        connection = self._arriving.pop(task)
        if task.cancelled():  # perhaps before it began
            connection.close()

    def _drop_arriving(self) -> bool:
        """Ends the oldest handshake, so that another one may begin; whether there was any."""
        task = next(iter(self._arriving), None)
        return task is not None and task.cancel()


def file_limit() -> int:
    """How many files this process may have open, after having asked for as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_FILES
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft
