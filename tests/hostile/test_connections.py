"""HTTP connections that only hold a place: slow headers, slow bodies, slow readers, and very many of them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvicorn
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from gateway.http.listener import HttpServer
from gateway.settings import ConnectionSettings
from tests.runtime.test_tls import make
from tests.stack import ROOT
from tests.waiting import until

LARGE = 24 << 20  # more than the kernel keeps for a connection on loopback
QUICK = {"headers_s": 0.4, "stall_s": 0.4, "min_bytes_per_s": 100_000}


class App:
    """Reads bodies, sends as much as the path asks for, and answers ``/hold`` when it is told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.held = 0
        self.disconnected = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        if scope["path"] == "/refuse":
            status = 413
        else:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.disconnected += 1
                    return
                if not message.get("more_body"):
                    break
        if scope["path"] == "/hold":
            self.held += 1
            await self.release.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
        length = str(len(body)).encode()
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]}
        )
        await send({"type": "http.response.body", "body": body})


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Sends bytes; the status, headers and body that come back."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, bytes, bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await self.reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
        return int(head.split()[1]), head.lower(), body

    async def closed(self, limit_s: float = 20) -> bool:
        """Whether the server ends the connection in time."""
        try:
            async with asyncio.timeout(limit_s):
                while await self.reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


class Running:
    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_connection("127.0.0.1", self.port))


@contextlib.asynccontextmanager
async def serving(tls: tuple[Path, Path] | None = None, **settings: float) -> AsyncIterator[Running]:
    app = App()
    files = {} if tls is None else {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]}
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **files)
    server = HttpServer(config, ConnectionSettings(**settings))
    listener = socket.create_server(("127.0.0.1", 0))
    serve = asyncio.create_task(server.serve([listener]))
    try:
        yield Running(app, listener.getsockname()[1])
    finally:
        app.release.set()
        server.should_exit = True
        await asyncio.wait_for(serve, 30)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: loc"


@pytest.mark.parametrize("begin", [b"", HALF, GET + HALF], ids=["silence", "half", "second"])
async def test_a_request_whose_headers_do_not_come_is_ended(begin: bytes) -> None:
    async with serving(**QUICK) as running:
        peer = await running.connect()
        peer.writer.write(begin)
        assert await peer.closed()


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01"], ids=["silence", "half"])
async def test_a_tls_handshake_that_does_not_come_is_ended(begin: bytes, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    async with serving(make(tmp_path, "a", now - day, now + day), **QUICK) as running:
        peer = await running.connect()
        peer.writer.write(begin)
        assert await peer.closed()


async def test_headers_that_come_one_byte_at_a_time_are_ended_too() -> None:
    async with serving(**QUICK) as running:
        peer = await running.connect()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in HALF + b"alhost-" * 1000:
                    peer.writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await peer.closed()
        dripping.cancel()


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_a_body_that_comes_too_slowly_is_ended_and_the_application_told(chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000"
    async with serving(**QUICK) as running:
        peer = await running.connect()
        peer.writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.writer.write(b"1\r\na\r\n" if chunked else b"a")
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await peer.closed()
        dripping.cancel()
        await until(lambda: running.app.disconnected)


async def test_a_body_that_keeps_the_pace_is_read_to_its_end() -> None:
    async with serving(headers_s=0.4, stall_s=0.4, min_bytes_per_s=1000) as running:
        peer = await running.connect()
        peer.writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000\r\n\r\n")
        for _ in range(16):
            peer.writer.write(b"a" * 500)
            await asyncio.sleep(0.1)
        assert (await peer.answer())[0] == 200


def closed(reason: str) -> float:
    """How many connections the gateway has closed for that reason."""
    name = "regionsearch_http_connections_closed_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0


async def test_an_answer_that_nobody_reads_is_dropped() -> None:
    before = closed("reader")
    async with serving(**QUICK) as running:
        peer = await running.connect()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        peer.writer.write(GET.replace(b"/ ", b"/large ", 1))
        await until(lambda: closed("reader") > before)
        peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await peer.answer()


async def test_answers_that_wait_for_readers_have_a_bound_of_memory() -> None:
    before = closed("reader")
    async with serving(max_unsent_bytes=2 * LARGE) as running:
        peers = [await running.connect() for _ in range(6)]
        for peer in peers:
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
            peer.writer.write(GET.replace(b"/ ", b"/large ", 1))
        await until(lambda: closed("reader") >= before + 2)
        complete = 0
        for peer in peers:
            peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                complete += (await peer.answer())[0] == 200
        assert 0 < complete <= 4  # in addition to what the kernel holds


async def test_work_that_takes_longer_than_all_limits_is_answered() -> None:
    async with serving(**QUICK) as running:
        peer = await running.connect()
        peer.writer.write(GET.replace(b"/ ", b"/hold ", 1))
        await asyncio.sleep(1.0)  # which is longer than each of them
        running.app.release.set()
        assert (await peer.answer())[0] == 200


async def test_a_body_that_was_refused_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.connections.LINGER_S", 0.5)
    async with serving(**QUICK | {"min_bytes_per_s": 1}) as running:
        peer = await running.connect()
        request = b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        assert (await peer.ask(request))[0] == 413

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.writer.write(b"a" * 10_000)
                    await peer.writer.drain()
                    await asyncio.sleep(0.01)

        flooding = asyncio.create_task(flood())
        assert await peer.closed()
        flooding.cancel()


async def test_idle_connections_make_room_for_those_that_ask() -> None:
    async with serving(max_connections=10) as running:
        idle = [await running.connect() for _ in range(30)]
        assert (await (await running.connect()).ask(GET))[0] == 200
        assert all([await peer.closed() for peer in idle[:15]])


async def test_when_all_connections_work_health_is_answered_and_the_rest_refused() -> None:
    async with serving(max_connections=10) as running:
        working = [await running.connect() for _ in range(10)]
        for peer in working:
            peer.writer.write(GET.replace(b"/ ", b"/hold ", 1))
        await until(lambda: running.app.held == 10)
        status, head, body = await (await running.connect()).ask(GET)
        assert (status, json.loads(body)["code"]) == (503, "UNAVAILABLE")
        assert b"retry-after: 1\r\n" in head
        for _ in range(20):
            peer = await running.connect()
            assert (await peer.ask(GET.replace(b"/ ", b"/healthz ", 1)))[0] == 200
            assert await peer.closed()
        running.app.release.set()
        assert [(await peer.answer())[0] for peer in working] == [200] * 10
        assert (await (await running.connect()).ask(GET))[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\n\tb\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        GET + b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
    ],
    ids=lambda request: repr(request[:70]),
)
async def test_what_is_not_http_or_may_be_read_in_two_ways_is_refused_and_ends(request_: bytes) -> None:
    async with serving() as running:
        peer = await running.connect()
        status, head, body = await peer.ask(request_)
        if request_.startswith(GET):
            assert status == 200
            status, head, body = await peer.answer()
        assert status in (400, 431, 501)
        assert b"content-type: application/problem+json\r\n" in head
        problem = json.loads(body)
        assert problem["status"] == status
        assert "not a valid HTTP request" in problem["detail"]
        assert await peer.closed()


@contextlib.contextmanager
def gateway_with_few_files(folder: Path, most: int) -> Iterator[tuple[int, Path]]:
    """A gateway process that may have this many files open; its HTTP port and its log."""
    command = [sys.executable, "-m", "gateway", "--port", "0", "--http-port", "0"]
    command += ["--http-port-file", str(folder / "port"), "--image-store", str(folder / "images")]
    command += ["--connections.headers-s", "60"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"REGIONSEARCH_GATEWAY_SEGMENTER": "127.0.0.1:1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
        )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "port").exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield int((folder / "port").read_text()), folder / "log"
    finally:
        process.terminate()
        process.wait(60)


def healthz(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_many_connections_and_few_file_descriptors_leave_health_answered_and_the_log_small(
    tmp_path: Path,
) -> None:
    with gateway_with_few_files(tmp_path, 80) as (port, log), contextlib.ExitStack() as held:
        for number in range(200):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            if number % 2:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(HALF)
        for _ in range(3):
            assert b"200 OK" in healthz(port)
        time.sleep(2)
        assert b"200 OK" in healthz(port)
        assert log.stat().st_size < 20_000, log.read_text()[-2000:]
